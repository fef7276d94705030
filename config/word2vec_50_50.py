# config/word2vec_50_50.py - Figure 6, right: word2vec on the very batches of cloned_50_50
dataset = 'cloned_50_50'
out_dir = 'out/word2vec_50_50'
corpora = {'en': 'hf:storytracer/LoC-PD-Books:text'}
languages = [('EN1', 'en'), ('EN2', 'en')]
schedule = [(0.0, (0.5, 0.5))]
model = 'word2vec'
learning_rate = 2e-3
min_lr = 2e-5
