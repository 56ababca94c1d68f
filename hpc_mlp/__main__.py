from hpc_mlp.cli import main

if __name__ == "__main__":
    main()
