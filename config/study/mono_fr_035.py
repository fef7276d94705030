# French alone, 35% of the tokens
from config.novels import *
dataset = 'study_mono_fr'
out_dir = 'out/study/mono_fr_035'
corpora = {'fr': '../shared/corpora/eltec-fra.tar.xz'}
languages = [('FR', 'fr')]
max_iters = 1050
