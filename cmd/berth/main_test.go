package main

import (
	"errors"
	"flag"
	"maps"
	"os"
	"os/exec"
	"strconv"
	"testing"

	"github.com/rogpeppe/go-internal/testscript"

	"berth/internal/nettest"
)

// update rewrites what the scripts compare with by cmp.
var update = flag.Bool("update", false, "rewrite testdata/*.txtar")

func TestMain(m *testing.M) {
	if orders := os.Getenv(attackEnv); orders != "" {
		attack(orders)
		return
	}
	testscript.Main(tidy{m}, map[string]func(){"berth": nettest.Inside(main)})
}

// tidy removes what all tests of a run shared.
type tidy struct{ *testing.M }

func (m tidy) Run() int {
	defer func() {
		for _, dir := range scrap {
			os.RemoveAll(dir) // best effort: it is below the directory for such
		}
	}()
	flag.Set("test.parallel", "16") // they wait for the kernel, which waits for grace periods
	return m.M.Run()
}

// TestScripts runs the command line's specification, testdata/*.txtar, each in
// a host of its own with a LAN.
func TestScripts(t *testing.T) {
	cmds := maps.Clone(nettest.Commands)
	cmds["status"] = status
	testscript.Run(t, testscript.Params{
		Dir: "testdata",
		Setup: func(env *testscript.Env) error {
			// Every change is read back and compared.
			env.Setenv("BERTH_VERIFY", "1")
			env.Setenv("BERTH_RUNTIME", os.Getenv("BERTH_RUNTIME")) // scripts/test-kernels tries both
			return nettest.Script(env)
		},
		Cmds:               cmds,
		RequireUniqueNames: true,
		UpdateScripts:      *update,
	})
}

// status runs a program that must end with an exit status:
//
//	status N COMMAND…
func status(ts *testscript.TestScript, neg bool, args []string) {
	if neg || len(args) < 2 {
		ts.Fatalf("usage: status N COMMAND...")
	}
	want, err := strconv.Atoi(args[0])
	ts.Check(err)
	got := 0
	var exit *exec.ExitError
	if err := ts.Exec(args[1], args[2:]...); errors.As(err, &exit) {
		got = exit.ExitCode()
	} else {
		ts.Check(err)
	}
	if got != want {
		ts.Fatalf("exit status %d, want %d", got, want)
	}
}
