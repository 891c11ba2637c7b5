// Command berth connects network namespaces, processes and containers to
// networks, with no Docker and no daemon.
package main

import (
	"os"
	"runtime"

	"berth/internal/cli"
)

func main() {
	// A command makes one system call after the other. On several processors
	// the runtime wakes others after many of them, for nothing: on two,
	// connect and publish take 4 % longer and disconnect 20 %.
	runtime.GOMAXPROCS(1)
	os.Exit(cli.Main(os.Args[1:]))
}
