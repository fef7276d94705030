# English and French, 50/50, anchored, half the tokens
from config.novels import *
dataset = 'study_en_fr_50_50_anchored'
out_dir = 'out/study/en_fr_50_50_anchored_half'
corpora = {'en': '../shared/corpora/eltec-eng.tar.xz', 'fr': '../shared/corpora/eltec-fra.tar.xz'}
languages = [('EN', 'en'), ('FR', 'fr')]
schedule = [(0.0, (0.5, 0.5))]
vocab = 'anchored'
max_iters = 1500
