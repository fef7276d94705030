# Every setting of data_prep.py and train.py, with its default. A config file or --key=value overrides it.

# data
dataset = 'novels'                 # the prepared data go to data/<dataset>/
corpora = {'en': 'corpora/eltec-eng.tar.xz'}  # corpus -> source: a glob[:FIELD] of .txt, .jsonl, .parquet or .tar
                                   # files, plain or .gz, .xz, .zst; 'eltec:deu' (novels, downloaded);
                                   # 'hf:DATASET[:FIELD[:SUBSET[:SPLIT]]]' (streamed)
languages = [('EN', 'en')]         # (name, corpus) in the order of their IDs; the second of a corpus is its clone
schedule = [(0.0, (1.0,))]         # (start as a fraction of training, p(language)), piecewise constant
tokenizer = 'sentencepiece'        # a BPE for each corpus; 'shared': one for all; FILE.model; 'tiktoken:gpt2',
                                   # 'tiktoken:RANKS_FILE'
vocab_size = 16384                 # pieces per corpus, if the tokenizer is trained here
vocab = 'disjoint'                 # between corpora: 'disjoint', or 'anchored': equal pieces share one id
anchor_frac = 0.0                  # between clones: share of the vocabulary that is not cloned
block_size = 512                   # tokens per sequence; the token after it is the last target
test_frac = 0.05                   # share of the documents held out for evaluation
min_chars = 200                    # shorter documents are dropped
max_tokens = 0                     # most training tokens per corpus; 0: all (from the hub: what training needs)
data_seed = 0                      # test split, anchor choice, language of each sequence

# model
model = 'gpt'                      # or 'word2vec': skip-gram with negative sampling; of the shape it uses n_embd only
n_layer = 12                       # 12 x 768: small (85M non-embedding parameters); 24 x 1024, 16 heads: medium (303M)
n_embd = 768                       # 4 x 512, 8 heads of 32: mini (11M)
n_head = 12
head_dim = 0                       # 0: n_embd / n_head
shared_layer = False               # word2vec: a feed-forward layer after the input table, shared by all words

# training
out_dir = 'out'                    # checkpoint, log and results of the run
batch_size = 128                   # sequences per step, over all devices
micro_batch_size = 0               # sequences per forward pass, per device; 0: the device's share of batch_size
max_iters = 18265                  # steps; 18,265 x 128 x 512 = 1.2B tokens
learning_rate = 6e-4               # peak of the cosine
min_lr = 6e-6                      # its end
warmup_iters = 200                 # steps of linear warm-up, as in the authors' code; the paper's text says 500
beta1 = 0.9                        # Adam
beta2 = 0.95
eval_interval = 1000               # steps between evaluations on the test text; the last step always has one
eval_iters = 20                    # batches per evaluation and language
checkpoint_interval = 1000         # steps between checkpoints; the last step always has one
keep_checkpoints = False           # keep each as out_dir/step_N, a run of its own for analyze.py
log_interval = 10                  # steps between lines of log.jsonl
log_to = ''                        # 'tensorboard' or 'wandb': also log there
init_from = ''                     # folder of a run to take the initial weights from: same shape and ids
seed = 0                           # initialisation, data order, draw of languages
resume = False                     # accepted and ignored: an unfinished run in out_dir is always continued
overwrite = False                  # train.py: discard the run in out_dir; data_prep.py: rebuild the dataset

# system
device = 'auto'                    # 'cuda', 'mps', 'cpu'; auto: the first one available
dtype = 'auto'                     # 'bfloat16' (autocast) or 'float32'; auto: bfloat16 on a GPU that has it
shard = False                      # several GPUs: split a model that is larger than one of them (fully_shard)
compile = 'auto'                   # torch.compile: True or False; auto: on cuda
num_workers = 0                    # processes of data_prep.py; 0: one per core
