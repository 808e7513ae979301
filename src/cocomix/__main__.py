from cocomix.cli import main

main()
