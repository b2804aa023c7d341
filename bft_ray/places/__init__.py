"""Folders, caches and object stores: files are written whole or not at all, and readable only for those who may read them."""
