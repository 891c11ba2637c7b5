package main

import (
	"encoding/json"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"

	"berth/internal/netns"
)

// Where Debian keeps them.
const (
	cniPath  = "/usr/lib/cni"
	netavark = "/usr/lib/podman/netavark"
)

// A tool attaches a sandbox to a network of its host, with one port, and
// detaches it, as processes.
type tool struct {
	name           string
	attach, detach func(i int, sb *netns.NS)
	in, out        sample
	want           limit // of berth's time by this one's
}

// process compares whole processes: berth, in two calls and in one, with what
// container engines run.
func process() []row {
	b := newBed()
	detach := func(_ int, sb *netns.NS) { b.berth("network", "disconnect", "front", ref(sb)) }
	two := &tool{name: "connect, then publish, as two processes / ", detach: detach, attach: func(i int, sb *netns.NS) {
		b.berth("network", "connect", "front", ref(sb))
		b.berth("publish", ref(sb), fmt.Sprintf("%d:80", 30000+i))
	}}
	one := &tool{name: "connect with --publish, as one process / ", detach: detach, attach: func(i int, sb *netns.NS) {
		b.berth("network", "connect", "--publish", fmt.Sprintf("%d:80", 40000+i), "front", ref(sb))
	}}
	all := []*tool{two, one}
	var rows []row
	for _, t := range []struct {
		make      func() *tool
		file      string
		name, pkg string
		want      limit
	}{
		{cniTool, cniPath + "/portmap", "Debian's CNI chain (bridge, host-local, portmap, firewall)", "containernetworking-plugins", atMost(0.1)},
		{netavarkTool, netavark, "Debian's netavark", "netavark", limit{}},
	} {
		if _, err := os.Stat(t.file); err != nil {
			for _, ours := range all[:2] {
				rows = append(rows, row{what: ours.name + t.name, unit: " ms", want: t.want, note: "not installed (" + t.pkg + ")"})
			}
			continue
		}
		other := t.make()
		other.name, other.want = t.name, t.want
		all = append(all, other)
	}
	var sbs []*netns.NS
	for i := range rounds(20) {
		sbs = append(sbs, several(len(all))...)
		for k := range all { // everybody is first at times
			k = (i + k) % len(all)
			all[k].in.timed(func() { all[k].attach(i, sbs[i*len(all)+k]) })
		}
	}
	left := left(b.host)
	for j, sb := range sbs {
		i, t := j/len(all), all[j%len(all)]
		t.out.timed(func() { t.detach(i, sb) })
	}
	for _, o := range all[2:] {
		for _, ours := range all[:2] {
			rows = append(rows, row{what: ours.name + o.name, ours: ours.in, reference: o.in, unit: " ms", want: o.want})
		}
		rows = append(rows, row{what: "disconnect as a process / " + o.name, ours: two.out, reference: o.out, unit: " ms"})
	}
	return append(rows, row{what: "processes left after the commands", ours: sample{float64(left)}, want: itselfMost(0)})
}

// left counts the processes that run the berth program or are in a namespace.
func left(ns *netns.NS) (n int) {
	own, program := must(os.Stat(pathOf(ns))), must(os.Stat(berthBin))
	for _, dir := range must(filepath.Glob("/proc/[0-9]*")) {
		exe, err := os.Stat(dir + "/exe")
		running := err == nil && os.SameFile(program, exe)
		at, err := os.Stat(dir + "/ns/net")
		if running || err == nil && os.SameFile(own, at) {
			n++
		}
	}
	return n
}

// cniTool is the chain of containernetworking's plugins.
func cniTool() *tool {
	c := referenceChain(false)
	return &tool{attach: c.add, detach: c.del}
}

// netavarkTool is what Podman runs.
func netavarkTool() *tool {
	host := fresh()
	shell(host, "ip link set lo up")
	dir := must(os.MkdirTemp("/run", "netavark-"))
	call := func(verb string, i int, sb *netns.NS) {
		id := strconv.Itoa(i)
		conf := map[string]any{
			"container_id": strings.Repeat("c", 60) + fmt.Sprintf("%04d", i), "container_name": "c" + id,
			"networks": map[string]any{"net": map[string]any{"interface_name": "eth0", "static_ips": []string{fmt.Sprintf("10.202.%d.%d", i/200, i%200+2)}}},
			"network_info": map[string]any{"net": map[string]any{
				"name": "net", "id": strings.Repeat("a", 64), "driver": "bridge", "network_interface": "podman9",
				"subnets": []map[string]string{{"subnet": "10.202.0.0/16", "gateway": "10.202.0.1"}}, "created": "2026-01-01T00:00:00Z",
				"ipv6_enabled": false, "internal": false, "dns_enabled": false, "ipam_options": map[string]string{"driver": "host-local"},
			}},
			"port_mappings": []map[string]any{{"container_port": 80, "host_ip": "", "host_port": 30000 + i, "protocol": "tcp", "range": 1}},
		}
		cmd := exec.Command(netavark, "--config", dir, verb, pathOf(sb))
		cmd.Stdin = strings.NewReader(string(must(json.Marshal(conf))))
		run(host, cmd)
	}
	return &tool{
		attach: func(i int, sb *netns.NS) { call("setup", i, sb) },
		detach: func(i int, sb *netns.NS) { call("teardown", i, sb) },
	}
}
