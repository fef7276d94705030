# English and French, 50/50
from config.novels import *
dataset = 'study_en_fr_50_50'
out_dir = 'out/study/en_fr_50_50'
corpora = {'en': '../shared/corpora/eltec-eng.tar.xz', 'fr': '../shared/corpora/eltec-fra.tar.xz'}
languages = [('EN', 'en'), ('FR', 'fr')]
schedule = [(0.0, (0.5, 0.5))]
