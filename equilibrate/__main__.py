from equilibrate.cli import main

raise SystemExit(main())
