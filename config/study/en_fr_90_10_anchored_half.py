# English and French, 90/10, anchored, half the tokens
from config.novels import *
dataset = 'study_en_fr_90_10_anchored'
out_dir = 'out/study/en_fr_90_10_anchored_half'
corpora = {'en': '../shared/corpora/eltec-eng.tar.xz', 'fr': '../shared/corpora/eltec-fra.tar.xz'}
languages = [('EN', 'en'), ('FR', 'fr')]
schedule = [(0.0, (0.9, 0.1))]
vocab = 'anchored'
max_iters = 1500
