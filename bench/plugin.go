package main

import (
	"encoding/json"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"

	"berth/internal/netns"
)

// A chain is a list of CNI plugins on a host, each executed with the result of
// the one before, as libcni does. Configurations are in execution's order.
type chain struct {
	host    *netns.NS
	dir     string // of the plugins
	version string
	plugins func(port int) []map[string]any
	results map[int]json.RawMessage
}

func (c *chain) call(command string, i int, sb *netns.NS, conf map[string]any, prev json.RawMessage) json.RawMessage {
	conf["cniVersion"], conf["name"] = c.version, "net"
	if prev != nil {
		conf["prevResult"] = prev
	}
	cmd := exec.Command(filepath.Join(c.dir, conf["type"].(string)))
	cmd.Env = append(os.Environ(), "CNI_COMMAND="+command, fmt.Sprintf("CNI_CONTAINERID=c%d", i), "CNI_NETNS="+pathOf(sb), "CNI_IFNAME=eth0", "CNI_PATH="+c.dir)
	cmd.Stdin = strings.NewReader(string(must(json.Marshal(conf))))
	return json.RawMessage(run(c.host, cmd))
}

// add is ADD with host port 30000 + i.
func (c *chain) add(i int, sb *netns.NS) {
	var prev json.RawMessage
	for _, p := range c.plugins(30000 + i) {
		prev = c.call("ADD", i, sb, p, prev)
	}
	c.results[i] = prev
}

func (c *chain) del(i int, sb *netns.NS) {
	for _, p := range slices.Backward(c.plugins(30000 + i)) {
		c.call("DEL", i, sb, p, c.results[i])
	}
}

// The limits of those that have some.
var bandwidth = map[string]int{"ingressRate": 100e6, "ingressBurst": 1e6, "egressRate": 100e6, "egressBurst": 1e6}

func portMappings(port int) []map[string]any {
	return []map[string]any{{"hostPort": port, "containerPort": 80, "protocol": "tcp"}}
}

// referenceChain is of Debian's plugins: bridge with host-local, portmap and
// firewall; those with limits have bandwidth and tuning too.
func referenceChain(limits bool) *chain {
	host := fresh()
	shell(host, "ip link set lo up")
	dir := must(os.MkdirTemp("/run", "cni-"))
	return &chain{host: host, dir: cniPath, version: "0.4.0", results: map[int]json.RawMessage{}, plugins: func(port int) []map[string]any {
		all := []map[string]any{
			{"type": "bridge", "bridge": "cni0", "isGateway": true, "ipMasq": true, "ipam": map[string]any{
				"type": "host-local", "dataDir": dir,
				"ranges": [][]map[string]string{{{"subnet": "10.201.0.0/16"}}},
				"routes": []map[string]string{{"dst": "0.0.0.0/0"}},
			}},
			{"type": "portmap", "runtimeConfig": map[string]any{"portMappings": portMappings(port)}},
			{"type": "firewall"},
		}
		if limits {
			all = append(all, map[string]any{"type": "bandwidth", "runtimeConfig": map[string]any{"bandwidth": bandwidth}},
				map[string]any{"type": "tuning", "sysctl": map[string]string{"net.core.somaxconn": "500"}})
		}
		return all
	}}
}

// ownChain is the one plugin.
func ownChain(limits bool) *chain {
	host := fresh()
	shell(host, "ip link set lo up")
	dir := must(os.MkdirTemp("/run", "bed-"))
	return &chain{host: host, dir: filepath.Dir(pluginBin), version: "1.0.0", results: map[int]json.RawMessage{}, plugins: func(port int) []map[string]any {
		caps := map[string]any{"portMappings": portMappings(port)}
		if limits {
			caps["bandwidth"] = bandwidth
		}
		return []map[string]any{{"type": filepath.Base(pluginBin), "root": dir + "/root", "run": dir + "/run", "subnets": []string{"10.201.0.0/16"}, "runtimeConfig": caps}}
	}}
}

// plugin compares CNI calls, from execution to exit, with those of the
// reference plugins, as the endpoints of a network grow.
func plugin() []row {
	rows := []row{
		{what: "the plugin's size", ours: sample{float64(must(os.Stat(pluginBin)).Size()/1e4) / 100}, unit: " MB", want: itselfMost(12)},
		starts(),
	}
	const four, six = "Debian's bridge, host-local, portmap and firewall", "those, bandwidth and tuning"
	if _, err := os.Stat(cniPath + "/portmap"); err != nil {
		return append(rows, row{what: "ADD and DEL / " + four, note: "not installed (containernetworking-plugins)"})
	}
	full := 500
	if *quick {
		full = 20
	}
	a, z := &pair{ours: ownChain(false), theirs: referenceChain(false)}, &pair{ours: ownChain(true), theirs: referenceChain(true)}
	first := a.measure(1)
	limited := z.measure(1)
	last := a.measure(full)
	rows = append(rows, first.rows(1, four)...)
	rows = append(rows, last.rows(full, four)...)
	rows = append(rows, row{what: fmt.Sprintf("ADD with %d on the network / with 1", full), ours: last.add[0], reference: first.add[0], unit: " ms", want: atMost(1.5)},
		row{what: fmt.Sprintf("the same of the reference plugins, with %d / with 1", full), ours: last.add[1], reference: first.add[1], unit: " ms"})
	for _, r := range limited.rows(1, six) {
		r.what = "with limits of bandwidth: " + r.what
		rows = append(rows, r)
	}
	return rows
}

// starts is a call that opens nothing, beside the same of a reference plugin.
func starts() row {
	r := row{what: "VERSION / Debian's bridge", unit: " ms", want: itselfMost(5)}
	ask := func(path string) func() {
		return func() {
			cmd := exec.Command(path)
			cmd.Env = append(os.Environ(), "CNI_COMMAND=VERSION")
			cmd.Stdin = strings.NewReader(`{"cniVersion": "1.0.0"}`)
			check(cmd.Run())
		}
	}
	_, err := os.Stat(cniPath + "/bridge")
	for i := range rounds(60) {
		turn(i, func() { r.ours.timed(ask(pluginBin)) }, func() {
			if err == nil {
				r.reference.timed(ask(cniPath + "/bridge"))
			}
		})
	}
	return r
}

// A pair is two chains whose networks grow together.
type pair struct {
	ours, theirs *chain
	full         int
}

// calls are what was measured of both, ours first.
type calls struct{ add, del [2]sample }

// measure fills the networks with n endpoints and measures more, which go
// again.
func (p *pair) measure(n int) (c calls) {
	for ; p.full < n; p.full++ {
		sbs := several(2)
		p.ours.add(p.full, sbs[0])
		p.theirs.add(p.full, sbs[1])
	}
	var sbs []*netns.NS
	for i := range rounds(20) {
		sbs = append(sbs, several(2)...)
		settle()
		ours, theirs := sbs[2*i], sbs[2*i+1]
		turn(i, func() { c.add[0].timed(func() { p.ours.add(p.full+i, ours) }) },
			func() { c.add[1].timed(func() { p.theirs.add(p.full+i, theirs) }) })
	}
	for i := range len(sbs) / 2 {
		settle()
		turn(i, func() { c.del[0].timed(func() { p.ours.del(p.full+i, sbs[2*i]) }) },
			func() { c.del[1].timed(func() { p.theirs.del(p.full+i, sbs[2*i+1]) }) })
	}
	return c
}

// rows compare the calls: 15 times faster is wanted of ADD, 8 times of DEL.
func (c calls) rows(n int, others string) []row {
	where := fmt.Sprintf(", with %d on the network / %s", n, others)
	return []row{
		{what: "ADD with one port" + where, ours: c.add[0], reference: c.add[1], unit: " ms", want: atMost(0.0667)},
		{what: "DEL" + where, ours: c.del[0], reference: c.del[1], unit: " ms", want: atMost(0.125)},
	}
}
