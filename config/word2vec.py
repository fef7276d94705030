# config/word2vec.py - Figure 6, right: word2vec on the same batches, after any config of clones
model = 'word2vec'
learning_rate = 2e-3
min_lr = 2e-5
