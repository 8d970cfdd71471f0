"""The backend for OpenAI-compatible servers.

Requests at the server's pace, and replies in all the forms they come in.
"""
