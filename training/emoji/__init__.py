"""The emoji world: pictures people drew, words on signs, and how the shipped model that draws them was trained."""
