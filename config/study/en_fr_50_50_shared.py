# English and French, 50/50, one tokenizer of both: corpora of their own names, since their tokens are other tokens
from config.novels import *
dataset = 'study_en_fr_50_50_shared'
out_dir = 'out/study/en_fr_50_50_shared'
corpora = {'en_shared': '../shared/corpora/eltec-eng.tar.xz', 'fr_shared': '../shared/corpora/eltec-fra.tar.xz'}
languages = [('EN', 'en_shared'), ('FR', 'fr_shared')]
schedule = [(0.0, (0.5, 0.5))]
tokenizer = 'shared'
vocab_size = 4096
