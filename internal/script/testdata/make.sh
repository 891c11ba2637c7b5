# the firewall table, made anew with its rules and elements
nft -f - <<'EOF'
table inet berth
delete table inet berth
# ruleset
add element inet berth bridges {
	"bt-back" comment "network back",
	"bt-front" comment "network front"
}
add element inet berth closed { "bt-back" comment "network back" }
add element inet berth hairpin4 {
	10.8.0.0/24 . "bt-back" comment "network back",
	10.9.0.0/24 . "bt-front" comment "network front"
}
add element inet berth hairpin6 { fd00:9::/64 . "bt-front" comment "network front" }
add element inet berth masq4 { 10.9.0.0/24 comment "network front" }
add element inet berth masq6 { fd00:9::/64 comment "network front" }
add element inet berth refused_from {
	"bt-back" comment "network back",
	"bt-front" comment "network front"
}
add element inet berth refused_to {
	"bt-back" comment "network back",
	"bt-front" comment "network front"
}
add element inet berth shield4 {
	10.8.0.0/24 comment "network back",
	10.9.0.0/24 comment "network front"
}
add element inet berth shield6 { fd00:9::/64 comment "network front" }
add element inet berth uplinks {
	ipv4 . "uplink0" comment "was here before forwarding",
	ipv6 . "uplink0" comment "was here before forwarding"
}
EOF

# the host routes between its networks
sysctl -qw net/ipv4/ip_forward=1
sysctl -qw net/ipv6/conf/all/forwarding=1

# the bridge, with a fixed address: else it takes the lowest of its ports
ip link add bt-back type bridge || true
ip link set dev bt-back mtu 1400 address c2:0d:0a:d2:32:6b alias berth:bbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbb promisc off

# the bridge, with a fixed address: else it takes the lowest of its ports
ip link add bt-front type bridge || true
ip link set dev bt-front mtu 1500 address 1a:9b:7f:49:b5:e0 alias berth:aaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaa promisc off

# a pair of interfaces, made where its ends belong
ip link add bt11111111 type veth peer name eth0 netns web || true
ip -n web link set dev eth0 mtu 1500 address 02:00:0a:09:00:02 alias berth:1111111111111111111111111111111111111111111111111111111111111111
ip link set dev bt11111111 mtu 1500 alias berth:1111111111111111111111111111111111111111111111111111111111111111 master bt-front addrgenmode none
bridge link set dev bt11111111 hairpin on isolated off
ip link set dev bt11111111 up

# a pair of interfaces, made where its ends belong
ip link add bt22222222 type veth peer name eth1 netns web || true
ip -n web link set dev eth1 mtu 1400 address 02:00:0a:08:00:02 alias berth:2222222222222222222222222222222222222222222222222222222222222222
ip link set dev bt22222222 mtu 1400 alias berth:2222222222222222222222222222222222222222222222222222222222222222 master bt-back addrgenmode none
bridge link set dev bt22222222 hairpin on isolated on
ip link set dev bt22222222 up

# where what leaves the sandbox waits: a queue stands only where packets leave a link
ip link add bt22222222-out type ifb || true
ip link set dev bt22222222-out mtu 1400 alias berth:2222222222222222222222222222222222222222222222222222222222222222 addrgenmode none

# no IPv6 where the network has none
sysctl -qw net/ipv6/conf/bt-back/disable_ipv6=1

# the interface speaks IPv6
sysctl -qw net/ipv6/conf/bt-front/disable_ipv6=0
ip netns exec web sysctl -qw net/ipv6/conf/eth0/disable_ipv6=0

# no IPv6 where the network has none
ip netns exec web sysctl -qw net/ipv6/conf/eth1/disable_ipv6=1

# no neighbour can bend a route
sysctl -qw net/ipv4/conf/bt-back/accept_redirects=0

# 127.0.0.1 stays on the host
sysctl -qw net/ipv4/conf/bt-back/route_localnet=0

# no neighbour can bend a route
sysctl -qw net/ipv4/conf/bt-front/accept_redirects=0

# link-local addresses serve at once, without duplicate address detection
sysctl -qw net/ipv6/conf/bt-front/accept_dad=0

# no neighbour can announce itself as a router
sysctl -qw net/ipv6/conf/bt-front/accept_ra=0

# no neighbour can bend a route
ip netns exec web sysctl -qw net/ipv4/conf/eth0/accept_redirects=0

# a sandbox does not route between its networks
ip netns exec web sysctl -qw net/ipv4/conf/eth0/forwarding=0

# no neighbour can bend a route
ip netns exec web sysctl -qw net/ipv4/conf/eth1/accept_redirects=0

# a sandbox does not route between its networks
ip netns exec web sysctl -qw net/ipv4/conf/eth1/forwarding=0

# link-local addresses serve at once, without duplicate address detection
ip netns exec web sysctl -qw net/ipv6/conf/eth0/accept_dad=0

# no neighbour can announce itself as a router
ip netns exec web sysctl -qw net/ipv6/conf/eth0/accept_ra=0

# no neighbour can bend a route
ip netns exec web sysctl -qw net/ipv6/conf/eth0/accept_redirects=0

# a sandbox does not route between its networks
ip netns exec web sysctl -qw net/ipv6/conf/eth0/forwarding=0

# what goes by this link waits for its turn
tc qdisc replace dev bt22222222-out root handle 6274: tbf rate 50000000bit burst 262144 limit 574644

# up, now that it is complete
ip link set dev bt22222222-out up

# what goes by this link waits for its turn
tc qdisc add dev bt22222222 ingress || true
tc filter del dev bt22222222 ingress pref 9800 2>/dev/null || true
tc filter add dev bt22222222 ingress protocol all pref 9800 u32 match u32 0 0 action mirred egress redirect dev bt22222222-out
tc qdisc replace dev bt22222222 root handle 6274: tbf rate 100000000bit burst 125952 limit 750952

# addresses; IPv6 without the second of duplicate address detection
ip addr replace 10.8.0.1/24 dev bt-back
ip addr replace 10.9.0.1/24 dev bt-front
ip addr replace fd00:9::1/64 dev bt-front nodad
ip -n web addr replace 10.9.0.2/24 dev eth0
ip -n web addr replace fd00:9::2/64 dev eth0 nodad
ip -n web addr replace 10.8.0.2/24 dev eth1

# up, now that it is complete
ip link set dev bt-back up
ip link set dev bt-front up
ip -n web link set dev eth0 up
ip -n web link set dev eth1 up
ip -n web link set dev lo up

# ::1 may speak on this interface: the host's own way to a published port
ip -6 route append local ::1/128 dev bt-front table local proto 98 metric 9800 || true

# the way out
ip -n web route replace default via 10.9.0.1 dev eth0 table main proto 98
ip -n web -6 route replace default via fd00:9::1 dev eth0 table main proto 98

# the way back of one source address
ip -n web -6 route replace fd00:9::/64 dev eth0 table 9800 proto 98
ip -n web route replace 10.9.0.0/24 dev eth0 table 9800 proto 98
ip -n web route replace default via 10.9.0.1 dev eth0 table 9800 proto 98
ip -n web -6 route replace default via fd00:9::1 dev eth0 table 9800 proto 98
ip -n web route replace 10.8.0.0/24 dev eth1 table 9801 proto 98

# an answer leaves by the interface that was asked
ip -n web rule add from 10.9.0.2/32 lookup 9800 priority 9800 protocol 98 || true
ip -n web -6 rule add from fd00:9::2/128 lookup 9800 priority 9800 protocol 98 || true
ip -n web rule add from 10.8.0.2/32 lookup 9801 priority 9801 protocol 98 || true

# the firewall, in one transaction
nft -f - <<'EOF'
add element inet berth publish_any4 { tcp . 8080 comment "sandbox web" : 10.9.0.2 . 80 }
add element inet berth publish_any6 { tcp . 8080 comment "sandbox web" : fd00:9::2 . 80 }
add element inet berth within { "bt-front" . "bt-front" comment "network front" }
EOF

# a published port answers on 127.0.0.1
sysctl -qw net/ipv4/conf/bt-front/route_localnet=1
