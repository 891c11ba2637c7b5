package nettest

import (
	"errors"
	"fmt"
	"net/netip"
	"os"
	"os/exec"
	"strconv"
	"strings"
	"syscall"
	"time"

	"github.com/rogpeppe/go-internal/testscript"

	"berth/internal/netns"
)

// hostEnv tells a program of a script which host it is to run in.
const hostEnv = "NETTEST_HOST"

// A script is what the commands of one testscript share.
type script struct{ host, lan *Host }

type scriptKey struct{}

// Script gives a testscript a host with a LAN. It is for
// [testscript.Params.Setup], beside [Commands].
func Script(env *testscript.Env) error {
	if os.Geteuid() != 0 {
		env.T().Skip("needs root to make network namespaces")
	}
	host, err := start()
	if err != nil {
		return err
	}
	env.Defer(func() { host.stop() })
	lan, err := start()
	if err != nil {
		return err
	}
	env.Defer(func() { lan.stop() })
	if err := host.wire(lan); err != nil {
		return err
	}
	env.Values[scriptKey{}] = script{host, lan}
	env.Setenv(hostEnv, strconv.Itoa(host.Pid()))
	return nil
}

// Inside makes a program of [testscript.Main] run in the host of its script,
// however the script runs it: "berth …", "exec berth … &".
func Inside(main func()) func() {
	return func() {
		pid := os.Getenv(hostEnv)
		if pid == "" {
			main()
			return
		}
		os.Unsetenv(hostEnv)
		if err := reexec(pid); err != nil {
			fmt.Fprintf(os.Stderr, "enter the test host: %v\n", err)
			os.Exit(125)
		}
	}
}

// reexec replaces the process by itself in the namespaces of pid.
func reexec(pid string) error {
	nsenter, err := exec.LookPath("nsenter")
	if err != nil {
		return err
	}
	self, err := os.Executable()
	if err != nil {
		return err
	}
	wd, err := os.Getwd()
	if err != nil {
		return err
	}
	args := append([]string{"nsenter", "-t", pid, "-m", "-n", "-W", wd, "--", self}, os.Args[1:]...)
	return syscall.Exec(nsenter, args, os.Environ())
}

// Commands are the commands of a testscript with a host. Standard output and
// standard error of the programs they run are matched with stdout and stderr.
// NS is a namespace's name, or host, or lan.
//
//	host COMMAND…                     run in the host
//	lan COMMAND…                      run on the LAN
//	in NS COMMAND…                    run in a namespace
//	serve NS PROTO ADDR:PORT TEXT     answer with TEXT and who asked
//	dial NS PROTO ADDR:PORT [WANT]    ask; the answer holds WANT
//	ping NS ADDR                      one echo
//	kernel-empty                      nothing of Berth's is left
//
// With "!" a command must fail. A dial or ping that must fail waits half a
// second for an answer, one that must not fail waits ten.
var Commands = map[string]func(ts *testscript.TestScript, neg bool, args []string){
	"host": func(ts *testscript.TestScript, neg bool, args []string) {
		run(ts, neg, of(ts).host, args)
	},
	"lan": func(ts *testscript.TestScript, neg bool, args []string) {
		run(ts, neg, of(ts).lan, args)
	},
	"in":           in,
	"serve":        serveCommand,
	"dial":         dialCommand,
	"ping":         pingCommand,
	"kernel-empty": kernelEmpty,
}

func of(ts *testscript.TestScript) script {
	s, ok := ts.Value(scriptKey{}).(script)
	if !ok {
		ts.Fatalf("no host: Params.Setup did not call nettest.Script")
	}
	return s
}

func run(ts *testscript.TestScript, neg bool, h *Host, args []string) {
	if len(args) == 0 {
		ts.Fatalf("no command to run")
	}
	// Who is in the host is not to be moved there again.
	full := append(h.enter(ts.MkAbs(".")), "env", "-u", hostEnv)
	check(ts, neg, ts.Exec("nsenter", append(full, args...)...))
}

func check(ts *testscript.TestScript, neg bool, err error) {
	if neg && err == nil {
		ts.Fatalf("unexpected success")
	}
	if !neg && err != nil {
		ts.Fatalf("%v", err)
	}
}

func in(ts *testscript.TestScript, neg bool, args []string) {
	if len(args) < 2 {
		ts.Fatalf("usage: in NS COMMAND...")
	}
	switch s := of(ts); args[0] {
	case "host":
		run(ts, neg, s.host, args[1:])
	case "lan":
		run(ts, neg, s.lan, args[1:])
	default:
		run(ts, neg, s.host, append([]string{"ip", "netns", "exec"}, args...))
	}
}

// place finds the namespace a script names. It is open until the script ends.
func place(ts *testscript.TestScript, name string) Place {
	switch s := of(ts); name {
	case "host":
		return s.host
	case "lan":
		return s.lan
	default:
		ns, err := netns.Open(s.host.Path(netns.Path(name)))
		if err != nil {
			ts.Fatalf("open namespace %s: %v", name, err)
		}
		ts.Defer(func() { ns.Close() })
		return ns
	}
}

func addrPort(ts *testscript.TestScript, s string) netip.AddrPort {
	a, err := netip.ParseAddrPort(s)
	ts.Check(err)
	return a
}

func serveCommand(ts *testscript.TestScript, neg bool, args []string) {
	if len(args) != 4 {
		ts.Fatalf("usage: serve NS PROTO ADDR:PORT TEXT")
	}
	s, _, err := serve(place(ts, args[0]), args[1], addrPort(ts, args[2]), args[3])
	if err == nil {
		ts.Defer(func() { s.Close() })
	}
	check(ts, neg, err)
}

// patience is how long to wait for an answer.
func patience(neg bool) time.Duration {
	if neg {
		return 500 * time.Millisecond
	}
	return 10 * time.Second
}

func dialCommand(ts *testscript.TestScript, neg bool, args []string) {
	if len(args) < 3 || len(args) > 4 {
		ts.Fatalf("usage: dial NS PROTO ADDR:PORT [WANT]")
	}
	answer, err := dial(place(ts, args[0]), args[1], addrPort(ts, args[2]), patience(neg))
	if err == nil {
		fmt.Fprintln(ts.Stdout(), answer)
		if len(args) == 4 && !strings.Contains(answer, args[3]) {
			err = fmt.Errorf("answer is %q, want %q", answer, args[3])
		}
	}
	check(ts, neg, err)
}

func pingCommand(ts *testscript.TestScript, neg bool, args []string) {
	if len(args) != 2 {
		ts.Fatalf("usage: ping NS ADDR")
	}
	addr, err := netip.ParseAddr(args[1])
	ts.Check(err)
	check(ts, neg, ping(place(ts, args[0]), addr, patience(neg)))
}

func kernelEmpty(ts *testscript.TestScript, neg bool, _ []string) {
	left, err := of(ts).host.Leftovers()
	ts.Check(err)
	if len(left) > 0 {
		err = errors.New("left in the kernel:\n" + strings.Join(left, "\n"))
	}
	check(ts, neg, err)
}
