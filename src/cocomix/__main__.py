from cocomix.cli.app import main

main()
