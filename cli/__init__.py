"""The command line, a file a command. Nothing here imports torch before a command has checked what it was given.

main         the parser, what runs a command, exit statuses, the log
render       runs a workflow file
inspect      describes a checkpoint and what is wrong with it
quantize     writes a quantized copy of a checkpoint
convert      writes CogView3-Base in the layout of diffusers
tiny         writes a small random checkpoint
bench        measures against transformers and diffusers
card         bench card: all about one GPU in one file
score        how well a checkpoint follows prompts of nano's world
train        trains nano, the built-in model
info         versions and devices, for a bug report
predictions  predicted memory, and settings for cards: the second half of inspect
device       the option --device
clone        what only a clone of the repository has
choices      the values that options take, listed without importing torch
messages     words of others in one line that a terminal does not obey
answers      what score keeps of each answer: groups, rows of its tables, whether two checkpoints differ
workers      several processes of this program, for score
progress     progress bars, and lines in a log
interrupts   Ctrl+C, from the first moment on
version      the versions of the libraries
graph/       workflow files: read, check, run
"""
