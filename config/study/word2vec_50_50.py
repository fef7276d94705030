# word2vec on the very batches of cloned_50_50
from config.novels import *
dataset = 'study_cloned_50_50'
out_dir = 'out/study/word2vec_50_50'
languages = [('EN1', 'en'), ('EN2', 'en')]
schedule = [(0.0, (0.5, 0.5))]
model = 'word2vec'
learning_rate = 1e-2
min_lr = 1e-4
