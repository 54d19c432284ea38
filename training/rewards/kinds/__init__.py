"""Room of the rewards that have a name, each found by its file: a new one is a new file here and nothing else.

The registry reads two literals from the text of each file, without importing it:

    REWARDS = {"ocr": "OCR"}        # names of rewards, and the class of this file behind each
    NEEDS = {"rapidocr": "ocr"}     # packages it imports that not every installation has, and the extra with each

What several rewards share, and is none, belongs to the room `models`.
"""
