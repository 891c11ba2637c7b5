package main

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"

	"berth/internal/nettest"
)

// programs builds the plugin and berth so that they can be killed, and cnitool
// from its module, once: DIR/cni/berth is the plugin, the others are in
// DIR/bin.
var programs = sync.OnceValues(func() (dir string, err error) {
	if dir, err = os.MkdirTemp("", "berth-cni-"); err != nil {
		return "", err
	}
	for _, p := range [][2]string{{"cni/berth", "."}, {"bin/berth-cni", "."}, {"bin/berth", "../berth"}, {"bin/cnitool", "github.com/containernetworking/cni/cnitool"}} {
		cmd := exec.Command("go", "build", "-tags", "crash", "-o", filepath.Join(dir, p[0]), p[1])
		cmd.Env = append(os.Environ(), "CGO_ENABLED=0")
		if out, err := cmd.CombinedOutput(); err != nil {
			return dir, fmt.Errorf("%w: %s", err, out)
		}
	}
	return dir, nil
})

func TestMain(m *testing.M) {
	code := m.Run()
	if dir, _ := programs(); dir != "" {
		os.RemoveAll(dir) // best effort: it is below the directory for such
	}
	os.Exit(code)
}

// A node is a host on which a container runtime calls the plugin.
type node struct {
	*nettest.Host
	dir    string
	before string // what it is like without any network
}

func newNode(t *testing.T) *node {
	t.Helper()
	if testing.Short() {
		t.Skip("builds three programs")
	}
	dir, err := programs()
	if err != nil {
		t.Fatal(err)
	}
	n := &node{Host: nettest.NewHost(t), dir: dir}
	n.must(t, "ip link add up0 index 100 type veth peer name up1 && ip addr add 192.0.2.1/24 dev up0 && ip link set up0 up")
	n.before = n.must(t, bare)
	return n
}

// bare is what a host without Berth has.
const bare = `nft list ruleset; ip -d -o link; ip -o -4 addr; ip rule; ip route show table all
cat /proc/sys/net/ipv4/ip_forward /proc/sys/net/ipv6/conf/all/forwarding`

// sh runs shell commands on the host.
func (n *node) sh(script string, env ...string) (string, error) {
	cmd := n.Command("sh", "-c", script)
	cmd.Env = slices.Concat(os.Environ(), []string{"PATH=" + n.dir + "/bin:" + os.Getenv("PATH"), "CNI_PATH=" + n.dir + "/cni"}, env)
	out, err := cmd.CombinedOutput()
	return string(out), err
}

func (n *node) must(t *testing.T, script string, env ...string) string {
	t.Helper()
	out, err := n.sh(script, env...)
	if err != nil {
		t.Fatalf("%s: %v\n%s", script, err, out)
	}
	return out
}

// clean is a test's last look: the kernel is what the store wants, and once the
// networks are gone nothing is left.
func (n *node) clean(t *testing.T) {
	t.Helper()
	if out, err := n.sh("berth check"); err != nil {
		t.Errorf("check: %v\n%s", err, out)
	}
	n.must(t, "berth network ls -q | xargs -r berth network rm >/dev/null")
	if after := n.must(t, bare); after != n.before {
		t.Errorf("left behind:\n%s\nbefore:\n%s", after, n.before)
	}
}

// A ask is one call of the plugin.
type ask struct {
	command, container, netns, ifname, args, path string

	conf string
	env  []string
}

// errorAnswer is what a call that failed says.
type errorAnswer struct {
	CNIVersion string `json:"cniVersion"`
	Code       uint   `json:"code"`
	Msg        string `json:"msg"`
	Details    string `json:"details"`
}

func (e *errorAnswer) Error() string {
	return fmt.Sprintf("code %d: %s (%s)", e.Code, e.Msg, e.Details)
}

// call executes the plugin. Its error is an *errorAnswer, or another one if it
// did not answer as it must.
func (n *node) call(a ask) (string, error) {
	cmd := n.Command(n.dir + "/cni/berth")
	cmd.Env = slices.Concat([]string{"PATH=" + os.Getenv("PATH")}, a.env)
	for _, kv := range [][2]string{
		{"CNI_COMMAND", a.command}, {"CNI_CONTAINERID", a.container}, {"CNI_NETNS", a.netns},
		{"CNI_IFNAME", a.ifname}, {"CNI_ARGS", a.args}, {"CNI_PATH", a.path},
	} {
		if kv[1] != "" {
			cmd.Env = append(cmd.Env, kv[0]+"="+kv[1])
		}
	}
	cmd.Stdin = strings.NewReader(a.conf)
	var stdout, stderr bytes.Buffer
	cmd.Stdout, cmd.Stderr = &stdout, &stderr
	err := cmd.Run()
	if strings.Contains(stderr.String(), "panic") {
		return "", fmt.Errorf("it panicked: %s", stderr.String())
	}
	var exit *exec.ExitError
	if err == nil || !errors.As(err, &exit) || exit.ExitCode() < 0 {
		return stdout.String(), err
	}
	var answer errorAnswer
	d := json.NewDecoder(&stdout)
	d.DisallowUnknownFields()
	if err := d.Decode(&answer); err != nil || d.More() || answer.Code == 0 || answer.Msg == "" || answer.CNIVersion == "" {
		return "", fmt.Errorf("no error of the specification: %v: %+v, stderr %s", err, answer, stderr.String())
	}
	return "", &answer
}

// pod makes a namespace and returns the call that concerns it.
func (n *node) pod(t *testing.T, name, conf string) ask {
	t.Helper()
	n.must(t, "ip netns add "+name)
	return ask{container: name, netns: "/run/netns/" + name, ifname: "eth0", conf: conf}
}

func (a ask) as(command string) ask {
	a.command = command
	return a
}

// with is the call with one more key in its configuration.
func (a ask) with(t *testing.T, key, raw string) ask {
	t.Helper()
	var conf map[string]json.RawMessage
	if err := json.Unmarshal([]byte(a.conf), &conf); err != nil {
		t.Fatal(err)
	}
	conf[key] = json.RawMessage(raw)
	b, err := json.Marshal(conf)
	if err != nil {
		t.Fatal(err)
	}
	a.conf = string(b)
	return a
}

// ok executes the plugin, which must not fail.
func (n *node) ok(t *testing.T, a ask) string {
	t.Helper()
	out, err := n.call(a)
	if err != nil {
		t.Fatalf("%s %s: %v", a.command, a.container, err)
	}
	return out
}

// refused executes the plugin, which must fail with a code and words.
func (n *node) refused(t *testing.T, a ask, code uint, words string) {
	t.Helper()
	out, err := n.call(a)
	var answer *errorAnswer
	if !errors.As(err, &answer) {
		t.Errorf("%s %.80s: it answered %q, %v; want code %d", a.command, a.conf, out, err, code)
		return
	}
	if answer.Code != code || !strings.Contains(answer.Msg+" "+answer.Details, words) {
		t.Errorf("%s: %v; want code %d and %q", a.command, answer, code, words)
	}
}

// parse decodes an answer.
func parse(b []byte, into any) error { return json.Unmarshal(b, into) }

// contains reports whether all of words are in a text.
func contains(text string, words ...string) bool {
	return !slices.ContainsFunc(words, func(w string) bool { return !strings.Contains(text, w) })
}
