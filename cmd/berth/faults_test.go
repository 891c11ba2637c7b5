package main

import (
	"flag"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"syscall"
	"testing"

	"berth/internal/nettest"
)

// A fault is a verb that is killed at every point where it has done something
// and not yet everything.
type fault struct {
	name    string
	prepare string // shell commands before it
	verb    string
	// between are commands that lead from prepare to a state that is neither
	// before nor after the verb and that it may leave: a verb of several
	// changes is not one.
	between []string
}

const (
	nets  = "berth network create --subnet 10.1.0.0/24,fd00:1::/64 front && berth network create --subnet 10.2.0.0/24,fd00:2::/64 back && "
	boxes = nets + "berth sandbox create web api && berth network connect front web && berth network connect front api && "
	ports = boxes + "berth publish web 8888:80 53:53/udp 127.0.0.1:9999:80 && "
)

// theirs is a network of what others have made, given before the test looks.
const (
	theirs = "berth network create --opt bridge=theirs0 theirs && "
	given  = "ip link add theirs0 type bridge && ip addr add 10.7.0.1/24 dev theirs0 && ip link set theirs0 addrgenmode none up && " +
		"ip link add their1 index 90 type veth peer name eth0 netns ns1 && ip link set their1 addrgenmode none master theirs0 up && " +
		"sysctl -qw net.ipv6.conf.theirs0.disable_ipv6=1 net.ipv6.conf.their1.disable_ipv6=1 && " +
		"ip -n ns1 addr add 10.7.0.9/24 dev eth0 && ip -n ns1 link set eth0 addrgenmode none up && until ip link show theirs0 | grep -q 'state UP'; do :; done"
)

var faults = []fault{
	{"network create", "", "berth network create --subnet 10.1.0.0/24,fd00:1::/64 front", nil},
	{"open network", "", "berth network create --ipv6 --opt open=true --opt promisc=true --opt hairpin=false yard", nil},
	{"network without an address", nets, "berth network create --opt address=false seg", nil},
	{"second network", nets, "berth network create third", nil},
	{"sandbox create", "", "berth sandbox create web", nil},
	{"connect", nets + "berth sandbox create web && ", "berth network connect front web", nil},
	{"connect what was found", nets, "berth network connect front ns1", nil},
	{"second connect", boxes, "berth network connect --gw-priority 1 back web", nil},
	{"connect with ports", nets + "berth sandbox create web && ", "berth network connect -p 8888:80 front web",
		[]string{"berth network connect front web"}},
	{"connect with limits", nets, "berth network connect --rate-in 10mbit --rate-out 5mbit front ns1", nil},
	{"update", nets + "berth network connect --rate-in 10mbit front ns1 && ", "berth network update --rate-in 0 --rate-out 5mbit front ns1", nil},
	{"update back", nets + "berth network connect --rate-out 10mbit front ns1 && ", "berth network update --rate-out 0 front ns1", nil},
	{"disconnect with limits", nets + "berth network connect --rate-out 10mbit front ns1 && ", "berth network disconnect front ns1", nil},
	{"connect found", theirs + "true && ", "berth network connect --found --interface eth0 --rate-in 10mbit --rate-out 5mbit -p 8888:80 theirs ns1",
		[]string{"berth network connect --found --interface eth0 --rate-in 10mbit --rate-out 5mbit theirs ns1"}},
	{"disconnect found", theirs + "berth network connect --found --interface eth0 --rate-out 5mbit -p 8888:80 theirs ns1 && ", "berth network disconnect theirs ns1", nil},
	{"first wire end", "berth network create --driver link --ipv6 wire && ", "berth network connect wire ns1", nil},
	{"second wire end", "berth network create --driver link --opt host=false wire && berth sandbox create web && berth network connect wire web && ",
		"berth network connect wire ns1", nil},
	{"publish", boxes, "berth publish web 8888:80 53:53/udp 127.0.0.1:9999:80", nil},
	{"publish --replace", ports, "berth publish --replace api 8888:80 53:53/udp", nil},
	{"unpublish", ports, "berth unpublish web 8888 53/udp", nil},
	{"unpublish all", ports, "berth unpublish --all web", nil},
	{"disconnect", ports, "berth network disconnect front web", nil},
	{"disconnect several", ports, "berth network disconnect front web api", nil},
	{"network rm", nets, "berth network rm front", nil},
	{"last network rm", "berth network create --ipv6 front && ", "berth network rm front", nil},
	{"network rm --force", ports + "berth network connect front ns1 && ", "berth network rm --force front",
		[]string{"berth network disconnect front web api ns1"}},
	{"sandbox rm", ports + "berth network connect back web && ", "berth sandbox rm web",
		[]string{"berth network disconnect front web && berth network disconnect back web"}},
	{"sandbox rm of what was found", nets + "berth network connect front ns1 && berth network connect back ns1 && ", "berth sandbox rm ns1", nil},
	{"reconcile after a flush", ports + "nft flush ruleset && ", "berth reconcile", nil},
	{"reconcile after links went", ports + "ip link del bt-front && ip -n web link set eth0 down && ", "berth reconcile", nil},
	{"reconcile after a namespace went", ports + "ip netns del web && until [ $(ip -o link show master bt-front | wc -l) = 1 ]; do :; done && ", "berth reconcile", nil},
}

// everywhere takes four times as long. Without it, a verb is killed once
// between any two things it does, and run again at every other point.
var everywhere = flag.Bool("everywhere", false, "kill each verb twice at every point")

// same reports whether nothing is done between two points.
func same(a, b string) bool {
	begins := strings.HasPrefix(b, "kernel.before:") || b == "kernel.sysctl" || strings.HasSuffix(b, ".before-commit")
	ended := strings.HasPrefix(a, "kernel.after:") || strings.HasSuffix(a, ".after-commit")
	return begins && (ended || strings.HasPrefix(a, "kernel.before:"))
}

// crashing builds the program that obeys BERTH_CRASH, once. In an emulated guest
// that takes five minutes, so scripts/test-kernels brings it.
var crashing = sync.OnceValues(func() (dir string, err error) {
	if dir = os.Getenv("BERTH_CRASHING"); dir != "" {
		return dir, nil
	}
	if dir, err = os.MkdirTemp("", "berth-crash-"); err != nil {
		return "", err
	}
	scrap = append(scrap, dir)
	cmd := exec.Command("go", "build", "-tags", "crash", "-o", filepath.Join(dir, "berth"), ".")
	cmd.Env = append(os.Environ(), "CGO_ENABLED=0")
	if out, err := cmd.CombinedOutput(); err != nil {
		return "", fmt.Errorf("%w: %s", err, out)
	}
	return dir, nil
})

// scrap are directories that go when the tests have ended.
var scrap []string

// A victim is a host on which berth is killed.
type victim struct {
	*nettest.Host
	env []string // PATH leads to the program that can be killed first
}

func newVictim(t *testing.T) *victim {
	t.Helper()
	dir, err := crashing()
	if err != nil {
		t.Fatal(err)
	}
	v := &victim{nettest.NewHost(t), []string{"PATH=" + dir + ":" + os.Getenv("PATH")}}
	// A way out that believes router advertisements, and a namespace that is
	// not Berth's.
	v.must(t, "ip link add up0 index 100 type veth peer name up1 && ip addr add 192.0.2.1/24 dev up0 && sysctl -q -w net.ipv6.conf.up0.accept_ra=1 && ip netns add ns1 && ip -n ns1 link set lo up")
	return v
}

// sh runs shell commands on the host.
func (v *victim) sh(script string, env ...string) (string, error) {
	cmd := v.Command("sh", "-c", script)
	cmd.Env = slices.Concat(os.Environ(), v.env, env)
	out, err := cmd.CombinedOutput()
	return string(out), err
}

func (v *victim) must(t *testing.T, script string, env ...string) string {
	t.Helper()
	out, err := v.sh(script, env...)
	if err != nil {
		t.Fatalf("%s: %v\n%s", script, err, out)
	}
	return out
}

// bare is all that a host without Berth has: whatever differs later is left.
// Link-local addresses come and go with carriers.
const bare = `nft list ruleset; ip -d -o link | sed "s/[a-z_]*_timer *[0-9.]*//g"; ip -o -4 addr; ip rule; ip -6 rule; ip route show table all; ip -6 route show table all | grep -v fe80::; tc qdisc
ip -n ns1 -d -o link; ip -n ns1 -o addr; ip -n ns1 route show table all; ip -n ns1 -6 route show table all; ip -n ns1 rule
cat /proc/sys/net/ipv4/ip_forward /proc/sys/net/ipv6/conf/all/forwarding /proc/sys/net/ipv6/conf/up0/accept_ra; ls /run/netns`

// wishes is what the store says, without what differs by chance.
const wishes = `berth network ls --format '{{.Name}}'; berth sandbox ls --format '{{.Name}} on {{.Networks}}: {{.Addresses}}'
berth port --format '{{.Sandbox}} {{.Network}} {{.Port}} {{.HostIP}} {{.HostPort}}' | sort
berth network ls -q | xargs -r berth network inspect -f '{{range .Endpoints}}{{.Sandbox}} {{.RateIn}} {{.RateOut}} {{.BurstIn}}{{println}}{{end}}' | sort`

// removal takes everything away.
const removal = `set -e
berth network ls -q | xargs -r berth network rm --force >/dev/null
berth sandbox ls -q | xargs -r berth sandbox rm >/dev/null`

// victim is the host that a verb is killed on.
func (f fault) victim(t *testing.T) *victim {
	t.Helper()
	v := newVictim(t)
	if strings.HasPrefix(f.prepare, theirs) {
		v.must(t, given)
	}
	return v
}

// states are the wishes before a verb, after it, and in between.
func (f fault) states(t *testing.T) []string {
	t.Helper()
	var all []string
	for _, verb := range slices.Concat([]string{"true", f.verb}, f.between) {
		v := f.victim(t)
		v.must(t, f.prepare+verb)
		all = append(all, v.must(t, wishes))
	}
	return all
}

// points counts where the verb can be killed.
func (f fault) points(t *testing.T) []string {
	t.Helper()
	v := f.victim(t)
	v.must(t, f.prepare+"true")
	log := filepath.Join(t.TempDir(), "log")
	v.must(t, f.verb, "BERTH_CRASH_LOG="+log)
	b, err := os.ReadFile(log)
	if err != nil {
		t.Fatal(err)
	}
	return strings.Split(strings.TrimSpace(string(b)), "\n")
}

// TestKilledAnywhere kills every changing verb at every point. A new process
// brings the host to order, whether it is told to or the verb is just run
// again; then all can be removed, and nothing is left.
func TestKilledAnywhere(t *testing.T) {
	if testing.Short() {
		t.Skip("kills some hundreds of processes")
	}
	for _, f := range faults {
		t.Run(f.name, func(t *testing.T) {
			t.Parallel()
			states, points := f.states(t), f.points(t)
			n := 0
			for i, name := range points {
				if !*everywhere && i > 0 && same(points[i-1], name) {
					continue
				}
				n++
				killings(t, n, i+1, name, func(t *testing.T, again bool) { f.kill(t, i+1, again, states) })
			}
		})
	}
}

// killings runs the test of the nth point that is tried: the verb is run again
// at every other one, or at all in both ways.
func killings(t *testing.T, n, point int, name string, kill func(t *testing.T, again bool)) {
	for _, again := range []bool{false, true} {
		if !*everywhere && again != (n%2 == 0) {
			continue
		}
		t.Run(fmt.Sprintf("%d %s again=%v", point, name, again), func(t *testing.T) {
			t.Parallel()
			kill(t, again)
		})
	}
}

// kill kills the verb at one point and mends what it left.
func (f fault) kill(t *testing.T, point int, again bool, states []string) {
	v := f.victim(t)
	before := v.must(t, bare)
	v.must(t, f.prepare+"true")
	out, err := v.sh("exec "+f.verb, fmt.Sprintf("BERTH_CRASH=%d", point))
	if !killed(err) {
		t.Fatalf("it was not killed: %v\n%s", err, out)
	}
	if again {
		out, err := v.sh(f.verb)
		if err != nil && !explained(out) {
			t.Errorf("run again: %v\n%s", err, out)
		}
		// What it said, done or refused, must be true.
		if diff, err := v.sh("berth check"); err != nil {
			t.Errorf("it said %sand check: %v\n%s", out, err, diff)
		}
	}
	if out, err := v.sh("berth reconcile"); err != nil {
		t.Fatalf("reconcile: %v\n%s", err, out)
	}
	if out, err := v.sh("berth check"); err != nil {
		t.Errorf("check: %v\n%s", err, out)
	}
	if now := v.must(t, wishes); !slices.Contains(states, now) {
		t.Errorf("what is wanted is neither as before nor as after:\n%swant one of:\n%s", now, strings.Join(states, "or\n"))
	}
	v.must(t, removal)
	if after := v.must(t, bare); after != before {
		t.Errorf("left behind:\n%s\nbefore:\n%s", after, before)
	}
	if out := v.must(t, wishes); out != "" {
		t.Errorf("still wanted:\n%s", out)
	}
}

func killed(err error) bool {
	exit, ok := err.(*exec.ExitError)
	if !ok {
		return false
	}
	s := exit.Sys().(syscall.WaitStatus)
	return s.Signaled() && s.Signal() == syscall.SIGKILL
}

// explained reports whether a verb that had done its work before it was killed
// says so.
func explained(out string) bool {
	for _, s := range []string{"already exists\n", "not found\n", "not connected", "connected already"} {
		if strings.Contains(out, s) {
			return true
		}
	}
	return false
}
