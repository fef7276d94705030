# English and French, 90/10
from config.novels import *
dataset = 'study_en_fr_90_10'
out_dir = 'out/study/en_fr_90_10'
corpora = {'en': '../shared/corpora/eltec-eng.tar.xz', 'fr': '../shared/corpora/eltec-fra.tar.xz'}
languages = [('EN', 'en'), ('FR', 'fr')]
schedule = [(0.0, (0.9, 0.1))]
