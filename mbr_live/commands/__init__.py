"""The commands, by what they are about: signatures, and nothing that a program does itself."""
