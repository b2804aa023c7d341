"""Where things lie: folders, caches and object stores; written whole or not at all, readable by whom they may be."""
