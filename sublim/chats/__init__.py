"""Chat templates: rendering chats as text and token ids, and finding where an answer begins and ends.

No stage starts here. Import `chat` for chats and their rendering, and `thoughts` for answers of reasoning models.
"""
