"""Room of the Hugging Face Hub: the card of an adapter, and the way there and back.

    report    run_report.json, the numbers a training run leaves beside its adapter
    licence   the licence that the card may name
    plots     reward over strength, alpha's calibration, the strip of strengths
    card      README.md, rendered from nft_config.json and run_report.json
    scan      finds local paths, names and tokens, which must not be uploaded
    verify    everything that can be wrong with an adapter's folder or repository, one line each
    push      uploads everything in one commit, whatever breaks on the way
    pull      fetches the folder of a repository, byte for byte
    export    writes files for tools that know nothing of reward guidance
    hub       turns the Hub's errors into sentences

Nothing is imported here; import the module you need.
"""
