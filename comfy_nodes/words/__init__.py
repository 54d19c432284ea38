"""Room of what the nodes say when something is, or may be, wrong.

Errors in the words of the widgets, badges with their sentences, and which family a wrong file looks like.
"""
