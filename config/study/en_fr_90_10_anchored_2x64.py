# English and French, 90/10, anchored, 2x64
from config.novels import *
dataset = 'study_en_fr_90_10_anchored'
out_dir = 'out/study/en_fr_90_10_anchored_2x64'
corpora = {'en': '../shared/corpora/eltec-eng.tar.xz', 'fr': '../shared/corpora/eltec-fra.tar.xz'}
languages = [('EN', 'en'), ('FR', 'fr')]
schedule = [(0.0, (0.9, 0.1))]
vocab = 'anchored'
n_layer = 2
n_embd = 64
n_head = 2
