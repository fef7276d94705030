# Every setting, with its default. A config file sets some of them, --key=value overrides both.

# data
dataset = 'novels'              # the prepared data go to data/<dataset>/
corpora = {'en': 'corpora/eltec-eng.tar.xz'}  # corpus -> source: a glob[:FIELD] of .txt, .jsonl,
                                # .parquet or .tar files, plain or .gz, .xz, .zst; from the hub:
                                # 'hf:DATASET[@REVISION][:FIELD[:SUBSET[:SPLIT]]]'
languages = [('EN', 'en')]      # (name, corpus), in the order of their IDs; the second language of
                                # a corpus is its clone
schedule = [(0.0, (1.0,))]      # (start as a fraction of training, p(language)), piecewise constant
tokenizer = 'sentencepiece'     # a BPE for each corpus; 'shared': one for all, and its ids;
                                # FILE.model; 'tiktoken:gpt2', 'tiktoken:RANKS_FILE'
vocab_size = 16384              # pieces per corpus, if the tokenizer is trained here
vocab = 'disjoint'              # between corpora: 'disjoint'; 'anchored': equal pieces share an id;
                                # FILE: the pieces, one a line, that corpora and clones share
anchor_frac = 0.0               # between clones: share of the pieces that is not cloned
anchor_seed = 0                 # which pieces: another draw from the same data
block_size = 512                # tokens per sequence; the token after it is the last target
test_frac = 0.05                # share of the documents held out for evaluation
min_chars = 200                 # shorter documents are dropped
max_tokens = 0                  # most training tokens of a corpus; 0: all (hub: what a run reads)
own_tokens = {}                 # language -> the unique training tokens it has, and repeats
data_seed = 0                   # test split, anchors, the language of each sequence

# model
n_layer = 12                    # 12 x 768: small, 85M non-embedding parameters
n_embd = 768                    # 24 x 1024, 16 heads: medium, 303M
n_head = 12                     # 4 x 512, 8 heads of 32: mini, 11M
head_dim = 0                    # 0: n_embd / n_head

# training
out_dir = 'out'                 # checkpoint, log and results of the run
batch_size = 128                # sequences per step, over all devices
micro_batch_size = 0            # sequences per forward pass and device, at most; 0: all at once
max_iters = 18265               # steps; 18,265 x 128 x 512 = 1.2B tokens
learning_rate = 6e-4            # peak of the cosine
min_lr = 6e-6                   # its end
warmup_iters = 200              # as in the authors' code; the paper's text says 500
beta1 = 0.9                     # Adam
beta2 = 0.95
weight_decay = 0.0              # of matrices and tables, decoupled (AdamW)
grad_clip = 0.0                 # largest norm of the gradient; 0: any
eval_interval = 1000            # steps between evaluations on the test text, and after the last
eval_iters = 20                 # batches per evaluation and language
checkpoint_interval = 1000      # steps between checkpoints, and after the last
keep_checkpoints = False        # keep each as out_dir/step_N, which analyze.py takes as a run
log_interval = 10               # steps between lines of log.jsonl
log_to = ''                     # 'tensorboard' or 'wandb': also log there
codeswitch = 0.0                # share of input tokens read in another clone of their corpus; the
                                # targets stay
init_from = ''                  # a run to take the first weights from: same shape, same ids
seed = 0                        # initialisation, order of the data, draw of languages
overwrite = False               # train.py: discard the run in out_dir; data_prep.py: the dataset

# system
device = 'auto'                 # 'cuda', 'mps', 'cpu'; auto: the first that is available
dtype = 'auto'                  # 'bfloat16' (autocast), 'float32'; auto: bfloat16 on cuda
compile = 'auto'                # torch.compile: True, False; auto: on cuda
num_workers = 0                 # threads that tokenise; 0: one per core
