# word2vec on the very batches of cloned_90_10
from config.novels import *
dataset = 'study_cloned_90_10'
out_dir = 'out/study/word2vec_90_10'
languages = [('EN1', 'en'), ('EN2', 'en')]
schedule = [(0.0, (0.9, 0.1))]
model = 'word2vec'
learning_rate = 1e-2
min_lr = 1e-4
