"""The int8 form of an extractor, and the recordings that it is made from and tested on."""
