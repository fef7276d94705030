# English and French, 90/10 then 10/90, anchored
from config.novels import *
dataset = 'study_en_fr_50_50_anchored'
out_dir = 'out/study/en_fr_90_10_then_10_90_anchored'
corpora = {'en': '../shared/corpora/eltec-eng.tar.xz', 'fr': '../shared/corpora/eltec-fra.tar.xz'}
languages = [('EN', 'en'), ('FR', 'fr')]
schedule = [(0.0, (0.9, 0.1)), (0.5, (0.1, 0.9))]
vocab = 'anchored'
