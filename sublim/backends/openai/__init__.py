"""The backend for OpenAI-compatible servers.

It keeps to the server's rate limits, retries failed requests and reads replies in the formats of many servers.
"""
