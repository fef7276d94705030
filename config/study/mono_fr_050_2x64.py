# French alone, 50% of the tokens, 2x64
from config.novels import *
dataset = 'study_mono_fr'
out_dir = 'out/study/mono_fr_050_2x64'
corpora = {'fr': '../shared/corpora/eltec-fra.tar.xz'}
languages = [('FR', 'fr')]
max_iters = 1500
n_layer = 2
n_embd = 64
n_head = 2
