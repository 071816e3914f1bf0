"""Plans by themselves: kept on disk, looked at, and taken from pictures.

kept          a plan as a file of a few kB, alone or in the PNG of its picture
from_picture  a picture's own plan: its vision tokens
mixed         plans cut and put together, and tokens dropped
look          the grid as a picture, alone or over another one
entropy       how sure the AR model is of each token, and how likely it was
choose        the best of several
draft         the smaller grid of a plan, to be painted quickly
"""
