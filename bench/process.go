package main

import (
	"encoding/json"
	"fmt"
	"os"
	"os/exec"
	"strings"

	"berth/internal/netns"
)

const cniPath = "/usr/lib/cni"

// chain is what a container engine runs for one sandbox with one port: the
// plugins of containernetworking, each with the result of the one before.
var chain = []string{
	`{"type":"bridge","bridge":"cni0","isGateway":true,"ipMasq":true,"ipam":{"type":"host-local","dataDir":"%s","ranges":[[{"subnet":"10.201.0.0/16"}]],"routes":[{"dst":"0.0.0.0/0"}]}`,
	`{"type":"portmap","runtimeConfig":{"portMappings":[{"hostPort":%d,"containerPort":80,"protocol":"tcp"}]}`,
	`{"type":"firewall"`,
}

// cni runs the chain in a host.
func cni(host, sandbox *netns.NS, dir string, i int) {
	var prev json.RawMessage
	for n, text := range chain {
		switch n {
		case 0:
			text = fmt.Sprintf(text, dir)
		case 1:
			text = fmt.Sprintf(text, 30000+i)
		}
		text += `,"cniVersion":"0.4.0","name":"net"`
		if prev != nil {
			text += `,"prevResult":` + string(prev)
		}
		text += "}"
		var head struct{ Type string }
		check(json.Unmarshal([]byte(text), &head))
		cmd := exec.Command("nsenter", "--net="+pathOf(host), cniPath+"/"+head.Type)
		cmd.Env = append(os.Environ(), "CNI_COMMAND=ADD", fmt.Sprintf("CNI_CONTAINERID=c%d", i), "CNI_NETNS="+pathOf(sandbox), "CNI_IFNAME=eth0", "CNI_PATH="+cniPath)
		cmd.Stdin = strings.NewReader(text)
		out, err := cmd.Output()
		if err != nil {
			panic(fmt.Sprintf("%s: %v: %s", head.Type, err, out))
		}
		prev = out
	}
}

// process compares whole processes: two calls of berth with Debian's chain of
// four.
func process() []row {
	if _, err := os.Stat(cniPath + "/portmap"); err != nil {
		return []row{{"connect + publish as processes / Debian's CNI chain", "not measured", "not installed (apt-get install containernetworking-plugins)", "", "≤ 0.1", ""}}
	}
	b := newBed()
	other := fresh()
	_ = exec.Command("nsenter", "--net="+pathOf(other), "ip", "link", "set", "lo", "up").Run()
	dir := must(os.MkdirTemp("/run", "cni-"))
	var ours, theirs sample
	for i := range rounds(20) {
		s1, s2 := fresh(), fresh()
		ours.timed(func() {
			b.berthIn("network", "connect", "front", ref(s1))
			b.berthIn("publish", ref(s1), fmt.Sprintf("%d:80", 30000+i))
		})
		theirs.timed(func() { cni(other, s2, dir, i) })
	}
	r := ours.median() / theirs.median()
	return []row{compare("connect + publish as two processes / Debian's CNI chain (bridge, host-local, portmap, firewall)", ours, theirs, "≤ 0.1", r <= 0.1)}
}
