// Command berth connects network namespaces, processes and containers to
// networks, with no Docker and no daemon.
package main

import (
	"os"

	"berth/internal/cli"
)

func main() { os.Exit(cli.Main(os.Args[1:])) }
