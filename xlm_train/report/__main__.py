from xlm_train.report import main

main()
