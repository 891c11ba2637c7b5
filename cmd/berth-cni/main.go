// Command berth-cni is the CNI plugin of Berth. A container runtime executes it
// as "berth"; nobody types it.
package main

import (
	"os"
	"runtime"

	"berth/internal/cni"
)

func main() {
	runtime.GOMAXPROCS(1) // as in cmd/berth
	os.Exit(cni.Main())
}
