package engine_test

import (
	"bufio"
	"errors"
	"flag"
	"fmt"
	"io"
	"maps"
	"os/exec"
	"slices"
	"strings"
	"testing"
	"time"

	"pgregory.net/rapid"

	"berth"
	"berth/engine"
	"berth/internal/nettest"
)

// A model is what must be there, told in the simplest words: networks by name,
// endpoints by sandbox and network, ports by host port.
type model struct {
	w  *world
	rt *rapid.T

	networks map[string]engine.NetworkSpec
	boxes    [3]*box
	ends     map[end]string // interface
	ports    map[uint16]int // box
}

type end struct {
	box     int
	network string
}

// A box is a namespace that ends when its process does.
type box struct {
	cmd   *exec.Cmd
	stdin io.Closer
}

func (b *box) ref() string { return engine.NetNS(b.path()) }

func (b *box) path() string { return fmt.Sprintf("/proc/%d/ns/net", b.cmd.Process.Pid) }

func (b *box) end() {
	b.stdin.Close()
	b.cmd.Wait() // its exit says nothing
}

func newBox(t interface{ Fatal(...any) }) *box {
	b := &box{cmd: exec.Command("unshare", "-n", "sh", "-c", "echo; exec cat")}
	in, err := b.cmd.StdinPipe()
	if err != nil {
		t.Fatal(err)
	}
	out, err := b.cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := b.cmd.Start(); err != nil {
		t.Fatal(err)
	}
	b.stdin = in
	if _, err := bufio.NewReader(out).ReadString('\n'); err != nil { // it is in its namespace
		b.end()
		t.Fatal(err)
	}
	return b
}

var kinds = []engine.NetworkSpec{
	{},
	{IPv6: true},
	{NoIPv4: true, IPv6: true},
	{Internal: true, IPv6: true},
	{Options: map[string]string{"icc": "false", "host": "deny"}},
	{IPv6: true, Options: map[string]string{"open": "true", "hairpin": "false"}},
	{Driver: berth.Link, IPv6: true},
	{Driver: berth.Link, Options: map[string]string{"host": "false"}},
}

var modelTime = flag.Duration("model.time", 15*time.Second, "how long the model is played; 0: without end")

// TestModel does things at random, lets another tool spoil them at random, and
// compares what there is with a model after every step.
func TestModel(t *testing.T) {
	t.Parallel()
	var w *world
	// So many runs as there is time for; -rapid.checks is at most.
	deadline := time.Now().Add(*modelTime)
	flag.Set("rapid.nofailfile", "true") // the seed is in the output
	rapid.Check(t, func(rt *rapid.T) {
		if *modelTime > 0 && time.Now().After(deadline) {
			return
		}
		if w == nil {
			w = newModelWorld(t)
		}
		m := &model{w: w, rt: rt, networks: map[string]engine.NetworkSpec{}, ends: map[end]string{}, ports: map[uint16]int{}}
		done := false
		defer func() {
			for _, b := range m.boxes {
				if b != nil {
					b.end()
				}
			}
			if !done { // what is left would spoil the next run
				w = nil
			}
		}()
		for i := range m.boxes {
			m.boxes[i] = newBox(rt)
		}
		actions := map[string]func(){
			"create": m.create, "remove": m.remove, "connect": m.connect, "connect again": m.connect, "disconnect": m.disconnect,
			"publish": m.publish, "publish again": m.publish, "unpublish": m.unpublish, "forget": m.forget, "die": m.die, "spoil": m.spoil, "spoil again": m.spoil,
		}
		names := slices.Sorted(maps.Keys(actions))
		for _, begin := range []func(){m.create, m.create, m.connect, m.connect, m.connect, m.publish} {
			begin()
		}
		for range rapid.IntRange(4, 12).Draw(rt, "steps") {
			actions[rapid.SampledFrom(names).Draw(rt, "action")]()
			m.check()
		}
		m.clear()
		done = true
	})
}

func newModelWorld(t *testing.T) *world {
	w := &world{t: t, host: nettest.NewHost(t)}
	w.o = engine.Options{Root: t.TempDir(), Run: t.TempDir(), NetNS: fmt.Sprintf("/proc/%d/ns/net", w.host.Pid())}
	w.Engine = w.open()
	return w
}

func (m *model) box() int { return rapid.IntRange(0, len(m.boxes)-1).Draw(m.rt, "box") }

// network is mostly one that is there.
func (m *model) network() string {
	there := slices.Sorted(maps.Keys(m.networks))
	names := slices.Concat([]string{"a", "b", "c"}, there, there, there)
	return rapid.SampledFrom(names).Draw(m.rt, "network")
}

func (m *model) port() uint16 { return uint16(rapid.IntRange(8000, 8002).Draw(m.rt, "port")) }

// want fails the run unless err is one of those that are right; none is nil.
func (m *model) want(what string, err error, right ...error) {
	m.rt.Helper()
	m.rt.Logf("%s: %v", what, err)
	for _, r := range right {
		if errors.Is(err, r) {
			return
		}
	}
	if err != nil || len(right) > 0 {
		m.rt.Fatalf("%s: %v, want one of %v", what, err, right)
	}
}

func (m *model) on(network string) (ends []end) {
	for e := range m.ends {
		if e.network == network {
			ends = append(ends, e)
		}
	}
	return ends
}

func (m *model) create() {
	name := rapid.SampledFrom([]string{"a", "b", "c"}).Draw(m.rt, "name")
	spec := rapid.SampledFrom(kinds).Draw(m.rt, "kind")
	spec.Name = name
	_, err := m.w.CreateNetwork(m.rt.Context(), spec)
	what := fmt.Sprintf("create %s %+v", name, spec)
	if _, there := m.networks[name]; there {
		m.want(what, err, berth.ErrExists)
		return
	}
	m.want(what, err)
	m.networks[name] = spec
}

func (m *model) remove() {
	name, force := m.network(), rapid.Bool().Draw(m.rt, "force")
	err := m.w.RemoveNetwork(m.rt.Context(), name, engine.RemoveOptions{Force: force})
	what := fmt.Sprintf("remove %s, force %v", name, force)
	if _, there := m.networks[name]; !there {
		m.want(what, err, berth.ErrNotFound)
		return
	}
	ends := m.on(name)
	if len(ends) > 0 && !force {
		m.want(what, err, berth.ErrInUse)
		return
	}
	m.want(what, err)
	for _, e := range ends {
		m.left(e)
	}
	delete(m.networks, name)
}

// left forgets an endpoint with its ports: one that leads there is gone in
// the engine as well.
func (m *model) left(e end) {
	delete(m.ends, e)
	for p, b := range m.ports {
		if b != e.box {
			continue
		}
		still := false
		for _, q := range m.published(b) {
			still = still || q == p
		}
		if !still {
			delete(m.ports, p)
		}
	}
}

// published are the ports that the engine says a box has.
func (m *model) published(b int) (ports []uint16) {
	all, err := m.w.Ports(m.rt.Context(), "")
	if err != nil {
		m.rt.Fatal(err)
	}
	for _, p := range all {
		if p.SandboxName == m.boxes[b].ref() {
			ports = append(ports, p.HostPort)
		}
	}
	return ports
}

func (m *model) connect() {
	e := end{m.box(), m.network()}
	ep, err := m.w.Connect(m.rt.Context(), e.network, m.boxes[e.box].ref(), engine.ConnectOptions{
		GwPriority: rapid.IntRange(0, 1).Draw(m.rt, "priority"),
	})
	what := fmt.Sprintf("connect box %d to %s", e.box, e.network)
	spec, there := m.networks[e.network]
	room := 1 << 10
	if spec.Driver == berth.Link {
		room = 1
		if spec.Options["host"] == "false" {
			room = 2
		}
	}
	switch _, already := m.ends[e]; {
	case !there:
		m.want(what, err, berth.ErrNotFound)
	case already:
		m.want(what, err, berth.ErrExists)
	case len(m.on(e.network)) >= room:
		m.want(what, err, berth.ErrExhausted)
	default:
		m.want(what, err)
		m.ends[e] = ep.Interface
	}
}

func (m *model) disconnect() {
	e := end{m.box(), m.network()}
	err := m.w.Disconnect(m.rt.Context(), e.network, []string{m.boxes[e.box].ref()}, engine.DisconnectOptions{})
	what := fmt.Sprintf("disconnect box %d from %s", e.box, e.network)
	if _, there := m.ends[e]; !there {
		m.want(what, err, berth.ErrNotFound)
		return
	}
	m.want(what, err)
	m.left(e)
}

// wayIn reports whether ports can lead to a box.
func (m *model) wayIn(b int) bool {
	for e := range m.ends {
		s := m.networks[e.network]
		if e.box == b && !s.Internal && s.Options["host"] != "false" {
			return true
		}
	}
	return false
}

func (m *model) publish() {
	b, p, replace := m.box(), m.port(), rapid.Bool().Draw(m.rt, "replace")
	spec := berth.PortSpec{Protocol: "tcp", HostLow: p, HostHigh: p, Port: 80}
	_, err := m.w.Publish(m.rt.Context(), m.boxes[b].ref(), []berth.PortSpec{spec}, engine.PublishOptions{Replace: replace})
	what := fmt.Sprintf("publish %d for box %d, replace %v", p, b, replace)
	owner, taken := m.ports[p]
	switch {
	case !m.wayIn(b):
		m.want(what, err, berth.ErrInvalid)
	case taken && !replace && owner != b:
		// The two may be of different families, and then both have it.
		m.want(what, err, berth.ErrConflict, nil)
	case taken && !replace:
		m.want(what, err, berth.ErrConflict, nil) // it may lead to another of its endpoints
	default:
		m.want(what, err)
		m.ports[p] = b
	}
}

func (m *model) unpublish() {
	b := m.box()
	_, err := m.w.Unpublish(m.rt.Context(), m.boxes[b].ref(), nil)
	what := fmt.Sprintf("unpublish box %d", b)
	m.want(what, err, nil, berth.ErrNotFound)
	maps.DeleteFunc(m.ports, func(_ uint16, owner int) bool { return owner == b })
}

func (m *model) forget() {
	b := m.box()
	err := m.w.RemoveSandbox(m.rt.Context(), m.boxes[b].ref())
	m.want(fmt.Sprintf("forget box %d", b), err, nil, berth.ErrNotFound)
	m.lost(b)
}

func (m *model) lost(b int) {
	maps.DeleteFunc(m.ends, func(e end, _ string) bool { return e.box == b })
	maps.DeleteFunc(m.ports, func(_ uint16, owner int) bool { return owner == b })
}

// die ends a namespace.
func (m *model) die() {
	b := m.box()
	m.rt.Logf("box %d dies", b)
	m.boxes[b].end()
	m.boxes[b] = newBox(m.rt)
	m.lost(b)
	m.reconcile()
}

// spoilers are what another tool may do, as shell commands on the host; BOX is
// a box's namespace, LINK one of the host's links of Berth's.
var spoilers = []string{
	"nft flush ruleset",
	"nft delete table inet berth",
	"nft flush set inet berth bridges",
	"nft flush map inet berth publish_any4",
	"nft add element inet berth uplinks '{ ipv4 . lo }'",
	"nft add element inet berth publish_any4 '{ tcp . 7777 : 10.0.0.1 . 7777 }'",
	"nft flush chain inet berth forward",
	"nft add table inet berth '{ flags dormant; }'",
	"ip link del LINK",
	"ip link set LINK down",
	"ip link set LINK down name stray",
	"ip link set LINK nomaster",
	"ip link set LINK mtu 1300",
	"ip link set LINK addrgenmode random; ip link set LINK arp off",
	"ip addr flush dev LINK",
	"ip addr add 10.99.99.1/24 dev LINK",
	"ip route flush table all proto 98",
	"ip route flush dev LINK; ip -6 route flush dev LINK",
	"sysctl -qw net.ipv4.ip_forward=0 net.ipv6.conf.all.forwarding=0",
	"nsenter --net=BOX ip link del eth0",
	"nsenter --net=BOX ip link set eth0 down name other",
	"nsenter --net=BOX ip addr flush dev eth0",
	"nsenter --net=BOX ip route flush table main",
	"nsenter --net=BOX ip rule flush; nsenter --net=BOX ip rule add lookup main; nsenter --net=BOX ip rule add pref 0 lookup local",
	"nsenter --net=BOX sysctl -qw net.ipv4.conf.eth0.forwarding=1 net.ipv6.conf.eth0.disable_ipv6=1",
	"nsenter --net=BOX ip link set eth0 address 02:00:00:00:00:01",
	"nsenter --net=BOX ip link set lo down",
}

// spoil lets another tool do something, and maybe a verb come before it is
// mended.
func (m *model) spoil() {
	script := rapid.SampledFrom(spoilers).Draw(m.rt, "spoiler")
	if strings.Contains(script, "LINK") {
		var links []string
		out, _ := m.w.host.Try("ip", "-br", "link") // a host has links
		for line := range strings.Lines(out) {
			if name, _, _ := strings.Cut(strings.Fields(line)[0], "@"); strings.HasPrefix(name, "bt") {
				links = append(links, name)
			}
		}
		if len(links) == 0 {
			return
		}
		script = strings.ReplaceAll(script, "LINK", rapid.SampledFrom(links).Draw(m.rt, "link"))
	}
	script = strings.ReplaceAll(script, "BOX", m.boxes[m.box()].path())
	out, err := m.w.host.Try("sh", "-c", script) // what is not there cannot be spoilt
	m.rt.Logf("%s: %v %s", script, err, out)
	if rapid.Bool().Draw(m.rt, "verb first") {
		b := m.box()
		if _, err := m.w.Unpublish(m.rt.Context(), m.boxes[b].ref(), nil); err != nil && !errors.Is(err, berth.ErrNotFound) {
			m.rt.Fatalf("unpublish box %d: %v", b, err)
		}
		maps.DeleteFunc(m.ports, func(_ uint16, owner int) bool { return owner == b })
	}
	m.reconcile()
}

func (m *model) reconcile() {
	if r, err := m.w.Reconcile(m.rt.Context()); err != nil {
		m.rt.Fatalf("reconcile: %v\n%+v", err, r)
	}
}

// check compares the kernel with the store and the store with the model.
func (m *model) check() {
	ctx := m.rt.Context()
	if r, err := m.w.Check(ctx); err != nil || !r.Clean() {
		m.rt.Fatalf("not clean: %+v, %v", r, err)
	}
	var have, want []string
	all, err := m.w.Networks(ctx)
	if err != nil {
		m.rt.Fatal(err)
	}
	for _, n := range all {
		have = append(have, n.Name)
		for _, e := range n.Endpoints {
			have = append(have, fmt.Sprintf("%s %s %s", n.Name, e.SandboxName, e.Interface))
		}
	}
	for n := range m.networks {
		want = append(want, n)
	}
	for e, dev := range m.ends {
		want = append(want, fmt.Sprintf("%s %s %s", e.network, m.boxes[e.box].ref(), dev))
	}
	for p, b := range m.ports {
		if !slices.Contains(m.published(b), p) {
			m.rt.Fatalf("box %d has not port %d", b, p)
		}
	}
	slices.Sort(have)
	slices.Sort(want)
	if !slices.Equal(have, want) {
		m.rt.Fatalf("there is %q, want %q", have, want)
	}
}

// clear removes everything; then nothing is left.
func (m *model) clear() {
	for n := range m.networks {
		m.want("remove "+n, m.w.RemoveNetwork(m.rt.Context(), n, engine.RemoveOptions{Force: true}))
	}
	left, err := m.w.host.Leftovers()
	if err != nil {
		m.rt.Fatal(err)
	}
	for _, l := range left {
		m.rt.Errorf("left: %s", l)
	}
	for _, path := range []string{"ipv4/ip_forward", "ipv6/conf/all/forwarding"} {
		if out, err := m.w.host.Try("cat", "/proc/sys/net/"+path); err != nil || strings.TrimSpace(out) != "0" {
			m.rt.Errorf("%s is %s, %v", path, out, err)
		}
	}
	for i, b := range m.boxes {
		out, err := m.w.host.Try("nsenter", "--net="+b.path(), "sh", "-c", "ip -br link | grep -v ^lo; ip rule | grep -c .; ip route show table all proto 98")
		if err != nil || strings.Contains(out, "@") {
			m.rt.Errorf("left in box %d: %s, %v", i, out, err)
		}
	}
	sbs, err := m.w.Sandboxes(m.rt.Context())
	if err != nil || len(sbs) > 0 {
		m.rt.Errorf("still known: %+v, %v", sbs, err)
	}
}
