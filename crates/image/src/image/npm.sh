#!/bin/sh
# mmdebstrap runs this with the root of the image that it makes: it installs packages of npm's there
# for everybody. The archive's own npm is only needed for that, and does not stay.
#
#   BANGER_NPM           the packages, each with its version, in the order in which they are installed
#   npm_config_registry  the registry, if the host has another one than npm's own
#   NODE_EXTRA_CA_CERTS  further certificates to trust, if the host has them
#
# Nothing that the host says stays in the image.
set -euf
root=$1
scratch=/tmp/banger-npm
mkdir "$root$scratch"
trap 'rm -rf "$root$scratch"' EXIT
if [ -n "${NODE_EXTRA_CA_CERTS:-}" ]; then
	cp "$NODE_EXTRA_CA_CERTS" "$root$scratch/ca.pem"
	NODE_EXTRA_CA_CERTS=$scratch/ca.pem
	export NODE_EXTRA_CA_CERTS
fi
export HOME="$scratch" PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin
export npm_config_cache="$scratch/cache" npm_config_userconfig="$scratch/npmrc" npm_config_prefix=/usr/local

# Each on its own, so that a newer node and npm install those that follow.
for package in $BANGER_NPM; do
	chroot "$root" npm install --global --no-audit --no-fund --no-update-notifier --loglevel=error "$package"
done
# Which registry a package came from is the host's affair.
find "$root/usr/local/lib/node_modules" -name .package-lock.json -delete
chroot "$root" apt-get --yes autoremove --purge nodejs npm
