"""The commands of `sessionkit`, for operators."""
