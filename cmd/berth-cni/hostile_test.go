package main

import (
	"strings"
	"testing"
)

// TestHostile gives the plugin what nobody should. It answers with an error of
// the specification, in good time, and nothing has changed.
func TestHostile(t *testing.T) {
	n := newNode(t)
	good := n.pod(t, "web", front("1.1.0", ""))
	bad := func(change func(*ask)) ask {
		a := good.as("ADD")
		change(&a)
		return a
	}
	conf := func(s string) ask { return bad(func(a *ask) { a.conf = s }) }
	for _, tt := range []struct {
		name  string
		ask   ask
		code  uint
		words string
	}{
		{"no command", bad(func(a *ask) { a.command = "" }), 4, "CNI_COMMAND"},
		{"a command that is none", bad(func(a *ask) { a.command = "add" }), 4, "CNI_COMMAND"},
		{"a long command", bad(func(a *ask) { a.command = strings.Repeat("A", 100000) }), 4, "CNI_COMMAND"},
		{"no environment", ask{command: "ADD", conf: good.conf}, 4, "CNI_CONTAINERID, CNI_NETNS, CNI_IFNAME"},
		{"no container for DEL", ask{command: "DEL", conf: good.conf}, 4, "CNI_CONTAINERID, CNI_IFNAME"},
		{"container with a slash", bad(func(a *ask) { a.container = "../web" }), 4, "CNI_CONTAINERID"},
		{"container with a newline", bad(func(a *ask) { a.container = "a\nb" }), 4, "CNI_CONTAINERID"},
		{"container that begins with a dash", bad(func(a *ask) { a.container = "-rf" }), 4, "CNI_CONTAINERID"},
		{"netns that is a file", bad(func(a *ask) { a.netns = "/etc/passwd" }), 4, "CNI_NETNS"},
		{"netns that is a directory", bad(func(a *ask) { a.netns = "/" }), 4, "CNI_NETNS"},
		{"netns that is not there", bad(func(a *ask) { a.netns = "/run/netns/nobody" }), 4, "CNI_NETNS"},
		{"netns that is another kind", bad(func(a *ask) { a.netns = "/proc/self/ns/mnt" }), 4, "CNI_NETNS"},
		{"netns of the host", bad(func(a *ask) { a.netns = "/proc/self/ns/net" }), 8, "host's own"},
		{"netns that never answers", bad(func(a *ask) { a.netns = "/dev/zero" }), 4, "CNI_NETNS"},
		{"netns as a relative path", bad(func(a *ask) { a.netns = "web" }), 4, "CNI_NETNS"},
		{"interface with a path", bad(func(a *ask) { a.ifname = "../x" }), 4, "CNI_IFNAME"},
		{"interface with a space", bad(func(a *ask) { a.ifname = "a b" }), 4, "CNI_IFNAME"},
		{"interface that is too long", bad(func(a *ask) { a.ifname = strings.Repeat("e", 16) }), 4, "CNI_IFNAME"},
		{"interface lo", bad(func(a *ask) { a.ifname = "lo" }), 7, "lo"},
		{"interface with a quote", bad(func(a *ask) { a.ifname = `e"; drop` }), 4, "CNI_IFNAME"},
		{"args that are none", bad(func(a *ask) { a.args = "K8S_POD_NAME" }), 4, "CNI_ARGS"},
		{"args with an unknown key", bad(func(a *ask) { a.args = "FOO=BAR" }), 4, "FOO"},
		{"args with a bad address", bad(func(a *ask) { a.args = "IP=10.1.0.999" }), 4, "IP"},
		{"args with a bad MAC", bad(func(a *ask) { a.args = "MAC=zz" }), 4, "MAC"},

		{"nothing", conf(""), 6, "JSON"},
		{"null", conf("null"), 6, "null"},
		{"a list", conf("[]"), 6, "JSON"},
		{"two objects", conf(good.conf + good.conf), 6, "JSON"},
		{"half an object", conf(good.conf[:40]), 6, "JSON"},
		{"a NUL byte", conf(strings.Replace(good.conf, "front", "fr\x00nt", 1)), 6, "JSON"},
		{"an escaped NUL byte", conf(strings.Replace(good.conf, "front", `fr\u0000nt`, 1)), 7, "name"},
		{"no UTF-8", conf(strings.Replace(good.conf, "front", "fr\xff\xfent", 1)), 7, "name"},
		{"10 MB of garbage", conf(strings.Repeat("x", 10<<20)), 6, "JSON"},
		{"10 MB of JSON", conf(front("1.1.0", `, "huge": "`+strings.Repeat("x", 10<<20)+`"`)), 2, "huge"},
		{"10 MB of keys", conf(front("1.1.0", strings.Repeat(`, "k": 1`, 10<<17))), 2, "k"},
		{"deep nesting", conf(strings.Repeat("[", 5<<20)), 6, "JSON"},
		{"deep nesting in a key", conf(front("1.1.0", `, "args": `+strings.Repeat(`{"a":`, 1<<20)+"1"+strings.Repeat("}", 1<<20))), 6, "JSON"},
		{"no name", conf(`{"cniVersion": "1.1.0", "type": "berth"}`), 7, "name"},
		{"a name that is a path", conf(strings.Replace(good.conf, `"front"`, `"../../etc"`, 1)), 7, "name"},
		{"a name that is a number", conf(strings.Replace(good.conf, `"front"`, `17`, 1)), 6, "17"},
		{"a name that is too long", conf(strings.Replace(good.conf, `"front"`, `"`+strings.Repeat("n", 1000)+`"`, 1)), 7, "128"},
		{"no version", conf(strings.Replace(good.conf, "cniVersion", "cniversion", 1)), 2, "cniversion"},
		{"version 0.2.0", conf(front("0.2.0", "")), 1, "0.2.0"},
		{"version 9.9.9", conf(front("9.9.9", "")), 1, "9.9.9"},
		{"version that is none", conf(front("one", "")), 1, "one"},
		{"an unknown key", conf(front("1.1.0", `, "brigde": "x"`)), 2, "brigde"},
		{"a key of the reference", conf(front("1.1.0", `, "ipMasq": true`)), 2, "masquerade"},
		{"a bad subnet", conf(front("1.1.0", `, "ipam": {"subnet": "10.1.0.0/99"}`)), 7, "10.1.0.0/99"},
		{"a range outside", conf(front("1.1.0", `, "ipam": {"subnet": "10.1.0.0/24", "rangeStart": "10.2.0.1"}`)), 7, "10.2.0.1"},
		{"a range backwards", conf(front("1.1.0", `, "ipam": {"subnet": "10.1.0.0/24", "rangeStart": "10.1.0.9", "rangeEnd": "10.1.0.3"}`)), 7, "behind"},
		{"a route elsewhere", conf(front("1.1.0", `, "ipam": {"type": "host-local", "routes": [{"dst": "10.9.0.0/16", "gw": "10.1.0.7"}]}`)), 2, "10.9.0.0/16"},
		{"an ipam program with a path", conf(strings.Replace(good.conf, `"subnets": ["10.1.0.0/24", "fd00:1::/64"]`, `"ipam": {"type": "../../bin/sh"}`, 1)), 7, "CNI_PATH"},
		{"an ipam program that is not there", conf(strings.Replace(good.conf, `"subnets": ["10.1.0.0/24", "fd00:1::/64"]`, `"ipam": {"type": "nobody"}`, 1)), 7, "nobody"},
		{"a port that is none", conf(front("1.1.0", `, "runtimeConfig": {"portMappings": [{"hostPort": 70000, "containerPort": 80}]}`)), 7, "70000"},
		{"a port that is zero", conf(front("1.1.0", `, "runtimeConfig": {"portMappings": [{"hostPort": 0, "containerPort": 80}]}`)), 7, "port 0"},
		{"a protocol that is none", conf(front("1.1.0", `, "runtimeConfig": {"portMappings": [{"hostPort": 1, "containerPort": 80, "protocol": "icmp"}]}`)), 7, "icmp"},
		{"a burst without a rate", conf(front("1.1.0", `, "runtimeConfig": {"bandwidth": {"egressBurst": 7}}`)), 7, "burst"},
		{"a rate below zero", conf(front("1.1.0", `, "ingressRate": -1`)), 6, "-1"},
		{"a rate that is too low", conf(front("1.1.0", `, "ingressRate": 1`)), 7, "1kbit"},
		{"a GUID", conf(front("1.1.0", `, "runtimeConfig": {"infinibandGUID": "c2:11:22:33:44:55:66:77"}`)), 2, "infinibandGUID"},
		{"three addresses", conf(front("1.1.0", `, "runtimeConfig": {"ips": ["10.1.0.7", "10.1.0.8"]}`)), 7, "10.1.0.8"},
		{"the gateway's address", conf(front("1.1.0", `, "runtimeConfig": {"ips": ["10.1.0.1/24"]}`)), 101, "gateway"},
		{"an address outside", conf(front("1.1.0", `, "runtimeConfig": {"ips": ["10.9.0.1/24"]}`)), 7, "10.9.0.1"},
		{"a result before", conf(front("1.1.0", `, "prevResult": {"cniVersion": "1.1.0"}`)), 7, "prevResult"},
		{"a result before, and addresses", conf(front("1.1.0", `, "ipam": {"type": "host-local"}, "prevResult": {"cniVersion": "1.1.0"}`)), 7, "ipam"},
		{"CHECK without a result", good.as("CHECK"), 7, "prevResult"},
		{"CHECK in 0.3.1", bad(func(a *ask) { a.command, a.conf = "CHECK", front("0.3.1", "") }), 1, "CHECK"},
		{"GC in 1.0.0", ask{command: "GC", conf: front("1.0.0", "")}, 1, "GC"},
		{"STATUS in 0.4.0", ask{command: "STATUS", conf: front("0.4.0", "")}, 1, "STATUS"},
	} {
		t.Run(tt.name, func(t *testing.T) { n.refused(t, tt.ask, tt.code, tt.words) })
	}
	n.ok(t, good.as("DEL"))
	if out := n.must(t, "berth sandbox ls -q; ip -n web -o link show type veth"); out != "" {
		t.Errorf("something was left: %s", out)
	}
	n.clean(t)
}
