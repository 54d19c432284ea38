"""Room of the Hugging Face Hub: the card of an adapter, and the way there and back.

    report    run_report.json, the numbers a training run leaves beside its adapter
    licence   under which licence the card may say it is
    plots     reward over strength, alpha's calibration, the strip of strengths
    card      README.md, rendered from nft_config.json and run_report.json
    scan      local paths, names and tokens that must not go up
    verify    everything that can be wrong with an adapter's folder or repository, one line each
    push      one commit, whatever breaks on the way
    pull      the folder of a repository, byte for byte
    export    files for tools that know nothing of reward guidance
    hub       the Hub's errors in sentences

Nothing is imported here; each module stands for itself.
"""
