# French alone, 100% of the tokens, 2x64
from config.novels import *
dataset = 'study_mono_fr'
out_dir = 'out/study/mono_fr_100_2x64'
corpora = {'fr': '../shared/corpora/eltec-fra.tar.xz'}
languages = [('FR', 'fr')]
n_layer = 2
n_embd = 64
n_head = 2
