package main

import (
	"fmt"
	"strings"
	"testing"
)

// front is a configuration as a runtime hands it over.
func front(version, more string) string {
	return fmt.Sprintf(`{"cniVersion": %q, "name": "front", "type": "berth", "subnets": ["10.1.0.0/24", "fd00:1::/64"]%s}`, version, more)
}

func TestAddDel(t *testing.T) {
	n := newNode(t)
	web := n.pod(t, "web", front("1.1.0", `, "runtimeConfig": {"portMappings": [{"hostPort": 8888, "containerPort": 80, "protocol": "tcp"}]}`))
	out := n.ok(t, web.as("ADD"))
	for _, want := range []string{`"cniVersion": "1.1.0"`, `"bt-front"`, `"10.1.0.2/24"`, `"gateway": "10.1.0.1"`, `"fd00:1::2/64"`, `"sandbox": "/run/netns/web"`, `"interface": 2`, `"dst": "0.0.0.0/0"`} {
		if !strings.Contains(out, want) {
			t.Errorf("no %s in %s", want, out)
		}
	}
	n.must(t, "ip netns exec web ping -c1 -W1 10.1.0.1")
	if out := n.must(t, "berth sandbox ls; berth port"); !strings.Contains(out, "web") || !strings.Contains(out, "8888") {
		t.Errorf("the sandbox and its port: %s", out)
	}
	n.must(t, "berth publish web 9999:80 && berth check")
	n.refused(t, web.as("ADD"), 100, "already")
	n.ok(t, web.as("CHECK").with(t, "prevResult", out))
	n.ok(t, web.as("DEL"))
	n.ok(t, web.as("DEL"))
	n.must(t, "test -z \"$(ip -n web -o link show type veth)\" && ip netns del web")
	n.ok(t, web.as("DEL"))
	n.clean(t)
}
