"""Room of what the nodes say when something is, or may be, wrong: errors in the words of the widgets, badges with their
sentences, and what a wrong file looks like."""
